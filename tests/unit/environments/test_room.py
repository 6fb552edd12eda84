"""The room is what its geometry says, and stereo reads it."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from ssl_suite.environments.room import FOCAL, Room, bilinear
from ssl_suite.functional.stereo import block_matching


def room_at(x: float, y: float, heading: float, **options: float) -> Room:
    room = Room(0, **options)
    room.pose = np.array([x, y, heading])
    return room


@pytest.mark.parametrize(("heading", "wall", "depth"), [(0.0, 0, 3.0), (90.0, 1, 4.0), (180.0, 2, 2.0), (270.0, 3, 1.0)])
def test_a_ray_ahead_meets_the_wall_it_faces(heading: float, wall: int, depth: float) -> None:
    found, walls, place, stretch = room_at(2.0, 1.0, math.radians(heading)).cast(0.0)
    assert (walls[31:33] == wall).all()
    assert found[31:33] == pytest.approx(depth)
    assert np.diff(place[20:44]) == pytest.approx(stretch[20:43], rel=1e-6), "a wall seen head-on is not stretched"
    assert (np.diff(place[20:44]) > 0).all(), "pictures hang the right way round"


def test_a_camera_further_right_sees_points_further_left() -> None:
    room = room_at(2.5, 2.5, 0.0, noise=0.0)
    pair = room.look()
    disparity, confident = block_matching(pair[0], pair[1], 13, texture=0.02)
    assert confident.sum() > 200
    assert (disparity[confident].median() - FOCAL * 0.12 / 2.5).abs() < 0.25


def test_disparity_grows_towards_the_wall() -> None:
    means = []
    for x in (2.0, 3.0, 3.8):
        pair = room_at(x, 2.0, 0.0).look()
        disparity, confident = block_matching(pair[0], pair[1], 13, texture=0.04)
        means.append(disparity[confident].mean().item())
        assert means[-1] == pytest.approx(FOCAL * 0.12 / (5.0 - x), abs=0.4)
    assert means == sorted(means)


def test_pictures() -> None:
    room = Room(3)
    pictures = room.look()
    assert pictures.shape == (2, 3, 48, 64)
    assert pictures.dtype == torch.float32
    assert 0.0 <= pictures.min() <= pictures.max() <= 1.0
    assert not torch.equal(room.look(), pictures), "noise is fresh"
    assert torch.equal(Room(3).look(), pictures), "a seed settles poses and noise"


def test_flight_and_crash() -> None:
    room = room_at(4.0, 2.5, 0.0)
    crashed = [room.forward() for _ in range(8)]
    assert crashed == [False] * 7 + [True]
    assert room.clearance == pytest.approx(0.2)
    room.turn(math.radians(-12.0))
    assert room.pose[2] == pytest.approx(math.radians(348.0))
    for _ in range(20):
        room.place()
        assert room.clearance >= 1.25


def test_bilinear() -> None:
    texture = np.arange(12.0).reshape(2, 2, 3)
    assert bilinear(texture, np.array([0.5]), np.array([0.5])) == pytest.approx(texture[0, :1])
    assert bilinear(texture, np.array([1.0]), np.array([1.0]))[0] == pytest.approx(texture.mean((0, 1)))
    assert bilinear(texture, np.array([9.0]), np.array([-9.0]))[0] == pytest.approx(texture[1, 0])


def test_bad_lengths_are_named() -> None:
    with pytest.raises(ValueError, match=r"baseline=0\.0"):
        Room(baseline=0.0)
    with pytest.raises(ValueError, match=r"size=1\.0"):
        Room(size=1.0)
