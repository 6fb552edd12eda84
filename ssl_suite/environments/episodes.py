"""The loop between an environment and whatever acts in it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import gymnasium


@dataclass
class Episode:
    """What happened in one episode of T steps.

    Attributes:
        observations: (T + 1, ...), of the environment's type.
        actions: those executed, (T, A) float32.
        rewards: (T,).
        infos: T + 1 of the environment's own.
    """

    observations: np.ndarray
    actions: np.ndarray
    rewards: np.ndarray
    infos: list[dict[str, Any]]


def run_episode(env: gymnasium.Env, act: Callable[[np.ndarray, dict[str, Any]], np.ndarray], seed: int | None = None) -> Episode:
    """Act from a reset until the environment terminates or truncates.

    Args:
        env: any environment of gymnasium with arrays as observations and actions.
        act: observation and info to action, called once for each step in order.
        seed: of the reset; None goes on with the environment's generator.
    """
    observation, info = env.reset(seed=seed)
    observations, actions, rewards, infos, over = [observation], [], [], [info], False
    while not over:
        actions.append(np.asarray(act(observation, info), np.float32))
        observation, reward, terminated, truncated, info = env.step(actions[-1])
        observations.append(observation)
        rewards.append(float(reward))
        infos.append(info)
        over = terminated or truncated
    return Episode(np.stack(observations), np.stack(actions), np.array(rewards), infos)
