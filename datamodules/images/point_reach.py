"""What an expert with unsteady hands saw and did in ``ssl_suite/PointReach-v0``: transitions, made when asked for."""

from __future__ import annotations

from typing import Any

import numpy as np

from datamodules.base import SourceDataModule
from ssl_suite.config import require
from ssl_suite.data.sources import Source, TransitionSource

STEPS = 10
"""Length of an episode: long enough to arrive in most, short enough to see many goals."""


class PointReachDataModule(SourceDataModule):
    """Transitions of the straight-line expert whose executed actions are disturbed.

    The expert's own action, which a policy is to learn, stands beside the disturbed one, which was executed and which
    explains what follows.

    Args:
        states: transitions to train on.
        test_states: transitions of the test part.
        noise: standard deviation of the disturbance of each action, which is then cut to [-1, 1].
        common: see `SourceDataModule`.

    Raises:
        ValueError: fewer than one state, or negative noise.
        ImportError: gymnasium is missing.
    """

    modality = "images"
    actions = 2

    def __init__(self, *, states: int = 6000, test_states: int = 1500, noise: float = 0.5, **common: Any) -> None:
        super().__init__(**common)
        if states < 1 or test_states < 1 or noise < 0.0:
            raise ValueError(f"data.states={states} and data.test_states={test_states} must be at least 1, data.noise={noise} "
                             "at least 0")
        require("gymnasium", "control")
        self.states, self.test_states, self.noise = states, test_states, noise

    def sources(self) -> dict[str, Source]:
        return {"train": self._collect(self.states, 0), "test": self._collect(self.test_states, 1)}

    def _collect(self, count: int, part: int) -> Source:
        """Episodes of the unsteady expert, cut after ``count`` transitions."""
        from ssl_suite.environments.episodes import Episode, run_episode
        from ssl_suite.environments.point_reach import gymnasium

        env, rng = gymnasium.make("ssl_suite/PointReach-v0", max_episode_steps=STEPS), np.random.default_rng((self.seed, part, 19))

        def act(observation: np.ndarray, info: dict[str, Any]) -> np.ndarray:
            return np.clip(info["expert"] + rng.normal(0.0, self.noise, 2), -1.0, 1.0).astype(np.float32)

        episodes: list[Episode] = []
        while sum(len(e.actions) for e in episodes) < count:
            episodes.append(run_episode(env, act, int(rng.integers(2**31))))
        return TransitionSource(
            np.concatenate([e.observations[:-1] for e in episodes])[:count],
            np.concatenate([e.observations[1:] for e in episodes])[:count],
            np.concatenate([[info["action"] for info in e.infos[1:]] for e in episodes]).astype(np.float32)[:count],
            np.concatenate([[info["expert"] for info in e.infos[:-1]] for e in episodes]).astype(np.float32)[:count])
