"""PointReach: the interface of gymnasium, what is seen, what shifts, and the expert."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

from ssl_suite.environments.episodes import run_episode
from ssl_suite.environments.point_reach import APART, HIGH, LOW, REACH, STEP, PointReach, draw, expert, gymnasium


def follow(observation, info):
    return info["expert"]


@pytest.mark.parametrize("options", [{}, {"background": 0.1, "render_mode": "rgb_array"}, {"contrast": 0.5}])
def test_keeps_the_interface_of_gymnasium(options):
    from gymnasium.utils.env_checker import check_env

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(gymnasium.make("ssl_suite/PointReach-v0", **options).unwrapped)


def test_an_episode_is_cut_after_thirty_steps_and_the_expert_arrives():
    env = gymnasium.make("ssl_suite/PointReach-v0")
    for seed in range(5):
        episode = run_episode(env, follow, seed)
        assert episode.observations.shape == (31, 1, 28, 28)
        assert episode.actions.shape == (30, 2)
        assert not episode.infos[0]["success"]
        assert episode.infos[-1]["success"]
        assert episode.infos[-1]["distance"] < 1e-3
        assert episode.rewards[-1] == pytest.approx(-episode.infos[-1]["distance"])
    assert env.reset(seed=0)[1]["distance"] >= APART


def test_truncation_is_not_termination():
    env = gymnasium.make("ssl_suite/PointReach-v0")
    env.reset(seed=0)
    flags = [env.step(np.zeros(2, np.float32))[2:4] for _ in range(30)]
    assert flags == [(False, False)] * 29 + [(False, True)]


def test_the_same_seed_gives_the_same_episode():
    one, two, other = (run_episode(gymnasium.make("ssl_suite/PointReach-v0"), follow, seed) for seed in (3, 3, 4))
    assert np.array_equal(one.observations, two.observations)
    assert not np.array_equal(one.observations, other.observations)


def test_an_action_moves_the_point_by_one_and_a_half_pixels_within_the_area():
    env = PointReach()
    env.reset(seed=1)
    env.position = np.array([10.0, 12.0])
    env.step(np.array([1.0, -0.5], np.float32))
    assert env.position == pytest.approx([10 + STEP, 12 - STEP / 2])
    assert env.step(np.array([1.0, -5.0]))[-1]["action"] == pytest.approx([1.0, -1.0])
    for _ in range(20):
        env.step(np.array([1.0, -5.0], np.float32))
    assert env.position == pytest.approx([HIGH, LOW])
    assert env.step(np.array([1.0, 0.5]))[-1]["action"] == pytest.approx([0.0, 0.5])
    assert not env.reset()[1]["action"].any()


def test_blob_and_ring_lie_where_point_and_goal_are():
    picture = draw(np.array([8.0, 20.0]), np.array([18.0, 9.0]))[0]
    assert np.unravel_index(picture.argmax(), picture.shape) == (8, 20)
    assert picture[18, 9] < 0.01 < 0.7 < picture[18, 12]
    assert draw(np.zeros((5, 3, 2)), np.ones((5, 3, 2))).shape == (5, 3, 1, 28, 28)


@pytest.mark.parametrize(("options", "shift"), [({"background": 0.1}, lambda x: 0.9 * x + 0.1),
                                                ({"contrast": 0.5}, lambda x: 0.5 * x)])
def test_shifts_are_the_formulas_and_leave_the_task_alone(options, shift):
    plain, shifted = (run_episode(gymnasium.make("ssl_suite/PointReach-v0", **o), follow, 2) for o in ({}, options))
    assert np.abs(shifted.observations / 255 - shift(plain.observations / 255)).max() < 1.01 / 255
    assert np.array_equal(plain.actions, shifted.actions)
    assert np.array_equal(plain.rewards, shifted.rewards)


def test_the_expert_goes_straight_and_stops():
    action = expert(np.array([5.0, 5.0]), np.array([20.0, 10.0]))
    assert action == pytest.approx(np.array([15.0, 5.0]) / np.hypot(15.0, 5.0))
    assert expert(np.array([5.0, 5.0]), np.array([5.3, 5.0])) == pytest.approx([0.2, 0.0])
    assert np.linalg.norm(STEP * expert(np.zeros(2), np.full(2, 0.1))) < REACH


@pytest.mark.parametrize("options", [{"background": -0.1}, {"contrast": 1.5}, {"render_mode": "human"}])
def test_what_is_refused(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        PointReach(**options)
