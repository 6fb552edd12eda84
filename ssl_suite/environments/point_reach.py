"""A point to be brought onto a goal: the smallest control task in which an encoder of pictures can fail by itself.

What the sensor delivers can be shifted (a lifted background, a weaker contrast) while the task and its dynamics stay as
they are. A stand-in for the control suites of robotics, whose training takes half a million rendered steps. Importing this
module registers ``ssl_suite/PointReach-v0`` with gymnasium (extra ``control``).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ssl_suite.config import require

require("gymnasium", "control")
import gymnasium  # noqa: E402

SIZE = 28
STEP = 1.5
REACH = 2.5
LOW, HIGH, APART = 5.0, 22.0, 6.0
"""Area of point and goal, and their least distance at the start, in pixels."""


def draw(position: np.ndarray, goal: np.ndarray) -> np.ndarray:
    """Pictures of a bright blob (the point) and a ring (the goal) on black.

    Args:
        position: row and column of the point, (..., 2), pixels.
        goal: likewise of the goal.

    Returns:
        Brightness in [0, 1], (..., 1, 28, 28).
    """
    pixel = np.stack(np.meshgrid(np.arange(SIZE), np.arange(SIZE), indexing="ij"), axis=-1)

    def away(centre: np.ndarray) -> np.ndarray:
        return np.linalg.norm(pixel - centre[..., None, None, :], axis=-1)

    blob = np.exp(-0.5 * (away(position) / 1.3) ** 2)
    ring = 0.8 * np.exp(-0.5 * ((away(goal) - 3.0) / 0.6) ** 2)
    return np.maximum(blob, ring)[..., None, :, :]


def expert(position: np.ndarray, goal: np.ndarray) -> np.ndarray:
    """Actions (..., 2) of length up to 1 that lead straight to the goal and stop there."""
    wanted = (goal - position) / STEP
    return wanted / np.maximum(1.0, np.linalg.norm(wanted, axis=-1, keepdims=True))


class PointReach(gymnasium.Env):
    """28x28 grey pictures; an action moves the point by at most 1.5 px along each axis; 30 steps by the registration.

    The reward is minus the distance to the goal in pixels. ``info`` tells ``distance`` (pixels), ``success`` (it is below
    2.5), ``expert`` (the action of `expert`) and ``action`` (the one executed: what moved the point as far as the area allows).

    Args:
        background: lift b of black: pictures become (1 - b) x + b.
        contrast: factor c on the picture, applied before.
        render_mode: ``rgb_array`` or None.

    Raises:
        ValueError: a shift outside [0, 1], or another render mode.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}

    def __init__(self, background: float = 0.0, contrast: float = 1.0, render_mode: str | None = None) -> None:
        for name, value in (("background", background), ("contrast", contrast)):
            if not 0.0 <= value <= 1.0:
                raise ValueError(f"{name}={value} must lie in [0, 1]; 0 and 1 are no background and full contrast")
        if render_mode not in (None, "rgb_array"):
            raise ValueError(f"render_mode={render_mode!r} is not one of None, 'rgb_array'")
        self.background, self.contrast, self.render_mode = background, contrast, render_mode
        self.observation_space = gymnasium.spaces.Box(0, 255, (1, SIZE, SIZE), np.uint8)
        self.action_space = gymnasium.spaces.Box(-1.0, 1.0, (2,), np.float32)
        self.position = self.goal = self.action = np.zeros(2)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.action = np.zeros(2)
        self.position = self.goal = self.np_random.uniform(LOW, HIGH, 2)
        while np.linalg.norm(self.goal - self.position) < APART:
            self.goal = self.np_random.uniform(LOW, HIGH, 2)
        return self._observe(), self._info()

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        wanted = self.position + STEP * np.clip(np.asarray(action, np.float64), -1.0, 1.0)
        before, self.position = self.position, np.clip(wanted, LOW, HIGH)
        self.action = (self.position - before) / STEP
        info = self._info()
        return self._observe(), -info["distance"], False, False, info

    def render(self) -> np.ndarray | None:
        """The observation in colour, (28, 28, 3) uint8, in the mode ``rgb_array``."""
        return np.repeat(self._observe()[0, :, :, None], 3, axis=2) if self.render_mode else None

    def _observe(self) -> np.ndarray:
        x = (1.0 - self.background) * self.contrast * draw(self.position, self.goal) + self.background
        return np.round(255.0 * x).astype(np.uint8)

    def _info(self) -> dict[str, Any]:
        distance = float(np.linalg.norm(self.goal - self.position))
        return {"distance": distance, "success": distance < REACH, "expert": expert(self.position, self.goal),
                "action": self.action}


gymnasium.register("ssl_suite/PointReach-v0", "ssl_suite.environments.point_reach:PointReach", max_episode_steps=30)
