"""The replay keeps the newest transitions; the trial lets losses pass or not."""

from __future__ import annotations

import pytest
import torch

from ssl_suite.functional.random import Draw
from ssl_suite.nn.replay import Replay
from ssl_suite.nn.trial import Trial

DRAW = torch.arange(500)


def filled(size: int, steps: int) -> Replay:
    """Observation t is t, the action at t is 10 t."""
    replay = Replay(size, (1,), 2)
    for t in range(steps):
        if t:
            replay.end(torch.full((1, 1), float(t)))
        replay.begin(torch.full((1, 1), float(t)), torch.full((1, 2), 10.0 * t))
    return replay


@pytest.mark.parametrize(("size", "steps"), [(1, 2), (1, 7), (4, 3), (4, 5), (4, 12)])
def test_the_newest_transitions_and_no_others_are_drawn(size, steps):
    before, action, after = filled(size, steps).rows(Draw(DRAW))
    assert torch.equal(after, before + 1)
    assert torch.equal(action, 10 * before.expand(-1, 2))
    assert sorted(set(before.flatten().tolist())) == list(range(max(0, steps - 1 - size), steps - 1))


def test_rows_are_drawn_evenly():
    counts = filled(4, 9).rows(Draw(DRAW))[0].flatten().long().bincount()[4:]
    assert (counts - 125).abs().max() < 50


def test_a_state_carries_everything():
    one, two = filled(3, 6), Replay(3, (1,), 2)
    two.load_state_dict(one.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(one.rows(Draw(DRAW)), two.rows(Draw(DRAW)), strict=True))
    assert two.running


def test_a_replay_of_nothing_is_refused():
    with pytest.raises(ValueError, match="replay=0"):
        Replay(0, (1,), 2)


@pytest.mark.parametrize(("loss", "refused"), [(1.9, False), (2.1, True)])
def test_a_trial_compares_the_mean_with_a_multiple(loss, refused):
    trial, typical = Trial(4, 20.0), torch.tensor(0.1)
    for i in range(4):
        assert trial.missing == 4 - i
        assert not trial.refusal(typical)
        trial.add(torch.tensor(loss + (-1) ** i))
    assert trial.missing == 0
    assert ("out of range" in trial.refusal(typical)) == refused


def test_a_trial_of_no_losses_passes_and_an_unknown_value_of_training_refuses_nothing():
    assert not Trial(0, 20.0).refusal(torch.tensor(0.1))
    trial = Trial(1, 20.0)
    trial.add(torch.tensor(9.0))
    assert not trial.refusal(torch.tensor(torch.nan))


@pytest.mark.parametrize(("length", "tolerance"), [(-1, 20.0), (5, 0.0)])
def test_bad_numbers_of_a_trial(length, tolerance):
    with pytest.raises(ValueError, match="trial"):
        Trial(length, tolerance)
