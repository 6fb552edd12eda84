"""A room to fly in: four walls that carry photographs, seen by two cameras side by side.

A small stand-in for the flights of persistent self-supervised learning (arXiv 1603.08047). The robot moves forward or turns
on the spot; every column of a picture is one ray to a wall. Floor and ceiling are plain. The photographs are the two that
scikit-learn brings, so nothing is downloaded.
"""

from __future__ import annotations

import math
from functools import cache

import numpy as np
import torch
from sklearn.datasets import load_sample_images
from torch import Tensor

HEIGHT, WIDTH = 48, 64
FIELD_OF_VIEW = math.radians(60.0)
FOCAL = WIDTH / 2 / math.tan(FIELD_OF_VIEW / 2)
"""Focal length in pixels."""
FLOOR, CEILING = 0.35, 0.75


@cache
def mip_levels() -> tuple[tuple[np.ndarray, ...], ...]:
    """Pictures (h, w, 3) in [0, 1] of the four walls, each with its halved copies; opposite walls mirror each other."""
    walls = []
    for mirrored in (False, True):
        for photo in load_sample_images().images:
            level = photo[:, ::-1] / 255.0 if mirrored else photo / 255.0
            levels = [level.astype(np.float32)]
            while min(levels[-1].shape[:2]) >= 8:
                h, w = (side // 2 * 2 for side in levels[-1].shape[:2])
                levels.append(levels[-1][:h, :w].reshape(h // 2, 2, w // 2, 2, 3).mean((1, 3)))
            walls.append(tuple(levels))
    return tuple(walls)


class Room:
    """A robot with two cameras in a square room.

    Args:
        seed: seed of poses and of the noise.
        size: side of the room in metres; the walls are as high as the photographs make them, two thirds of it.
        baseline: distance of the cameras in metres.
        noise: standard deviation of a pixel's noise; pictures lie in [0, 1].
        reach: distance to a wall below which the robot has crashed, in metres.

    Attributes:
        pose: place (x, y) in metres and heading in radians.

    Raises:
        ValueError: a length that is not positive, or a room too small to turn in.
    """

    def __init__(self, seed: int = 0, *, size: float = 5.0, baseline: float = 0.12, noise: float = 0.02,
                 reach: float = 0.3) -> None:
        if min(baseline, reach) <= 0 or noise < 0 or size <= 4 * reach:
            raise ValueError(f"size={size}, baseline={baseline}, noise={noise}, reach={reach}: lengths must be positive, and "
                             "the room more than four times the reach")
        self.size, self.baseline, self.noise, self.reach = size, baseline, noise, reach
        self.rng = np.random.default_rng(seed)
        self.place()

    def place(self) -> None:
        """Put the robot somewhere in the middle half of the room, facing anywhere."""
        x, y = self.rng.uniform(self.size / 4, 3 * self.size / 4, 2)
        self.pose = np.array([x, y, self.rng.uniform(0.0, 2 * math.pi)])

    def turn(self, angle: float) -> None:
        """Turn on the spot, counter-clockwise, by an angle in radians."""
        self.pose[2] = (self.pose[2] + angle) % (2 * math.pi)

    def forward(self, distance: float = 0.1) -> bool:
        """Fly ahead by metres; returns whether the robot crashed, and then stands where it did."""
        self.pose[:2] += distance * np.array([math.cos(self.pose[2]), math.sin(self.pose[2])])
        return self.clearance < self.reach

    @property
    def clearance(self) -> float:
        """Distance to the nearest wall in metres."""
        return float(min(*self.pose[:2], *(self.size - self.pose[:2])))

    def look(self) -> Tensor:
        """The two pictures, left first, (2, 3, 48, 64) float32 in [0, 1], with fresh noise."""
        left, right = (self.picture(side * self.baseline / 2) for side in (-1.0, 1.0))
        pictures = np.stack([left, right]) + self.noise * self.rng.standard_normal((2, HEIGHT, WIDTH, 3))
        return torch.from_numpy(pictures.clip(0.0, 1.0).astype(np.float32)).permute(0, 3, 1, 2).contiguous()

    def cast(self, offset: float) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Where the rays of the columns end, for a camera ``offset`` metres to the right of the robot.

        Returns:
            Depths along the line of sight, walls 0 to 3, places along the wall from its left end, in metres, and metres of wall
            per column; (64,) each.
        """
        x, y, heading = self.pose
        ahead, right = (np.array([math.cos(a), math.sin(a)]) for a in (heading, heading - math.pi / 2))
        k = (np.arange(WIDTH) - (WIDTH - 1) / 2) / FOCAL
        ray = ahead[:, None] + right[:, None] * k
        start = np.array([x, y]) + offset * right
        with np.errstate(divide="ignore"):
            bound = np.where(ray > 0, self.size, 0.0)
            depths = (bound - start[:, None]) / ray
        axis = depths.argmin(0)
        column = np.arange(WIDTH)
        depth, across = depths[axis, column], 1 - axis
        place = start[across] + depth * ray[across, column]
        slant = np.abs(right[across] - right[axis] * ray[across, column] / ray[axis, column])
        wall = 2 * (ray[axis, column] < 0) + axis
        reverse = (wall == 0) | (wall == 3)  # so that pictures are not mirrored by where they hang
        return depth, wall, np.where(reverse, self.size - place, place), depth * slant / FOCAL

    def picture(self, offset: float) -> np.ndarray:
        """What a camera sees, (48, 64, 3) in [0, 1], without noise."""
        depth, wall, place, stretch = self.cast(offset)
        walls = mip_levels()
        high, wide = walls[0][0].shape[:2]
        density = wide / self.size  # pixels of a photograph per metre
        level = np.log2(np.maximum(np.maximum(stretch, depth / FOCAL) * density, 1.0)).round().astype(int)
        down = 0.5 * high / density + depth * ((np.arange(HEIGHT) - (HEIGHT - 1) / 2) / FOCAL)[:, None]  # metres below the ceiling
        out = np.empty((HEIGHT, WIDTH, 3), np.float32)
        for w, n in {(int(a), int(b)) for a, b in zip(wall, level, strict=True)}:
            here, texture = (wall == w) & (level == n), walls[w][min(n, len(walls[w]) - 1)]
            row = down[:, here] * texture.shape[0] * density / high
            column = np.broadcast_to(place[here] * texture.shape[1] / self.size, row.shape)
            out[:, here] = bilinear(texture, row, column)
        out[down < 0] = CEILING
        out[down > high / density] = FLOOR
        return out


def bilinear(texture: np.ndarray, row: np.ndarray, column: np.ndarray) -> np.ndarray:
    """Values (..., 3) of a texture (h, w, 3) at real places (...), pixel centres at halves; the edge goes on outside."""
    h, w = texture.shape[:2]
    row, column = (row - 0.5).clip(0, h - 1), (column - 0.5).clip(0, w - 1)
    r, c = row.astype(int), column.astype(int)
    r1, c1 = np.minimum(r + 1, h - 1), np.minimum(c + 1, w - 1)
    dr, dc = (row - r)[..., None], (column - c)[..., None]
    return ((1 - dr) * ((1 - dc) * texture[r, c] + dc * texture[r, c1])
            + dr * ((1 - dc) * texture[r1, c] + dc * texture[r1, c1]))
