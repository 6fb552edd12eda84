"""The running centre of a teacher's scores."""

from __future__ import annotations

import torch
from lightly.models.modules.center import Center

from ssl_suite.nn.centre import Centre


def test_it_moves_as_lightlys_does() -> None:
    mine, theirs = Centre(5, momentum=0.8), Center((1, 5), momentum=0.8)
    for seed in range(3):
        scores = torch.randn(2, 7, 5, generator=torch.Generator().manual_seed(seed))
        expected = ((scores - theirs.value) / 0.05).softmax(-1)
        torch.testing.assert_close(mine(scores, 0.05), expected)
        theirs.update(scores.flatten(0, 1))
        torch.testing.assert_close(mine.value, theirs.value[0])
    assert not mine(scores.requires_grad_(), 0.05).requires_grad


def test_places_that_do_not_count_leave_it_alone() -> None:
    counts, scores = torch.tensor([[True, False], [True, True]]), torch.randn(2, 2, 5)
    centre, plain = Centre(5), Centre(5)
    centre(scores, 0.1, counts)
    plain(scores[counts], 0.1)
    torch.testing.assert_close(centre.value, plain.value)
    before = centre.value.clone()
    centre(scores, 0.1, torch.zeros(2, 2, dtype=torch.bool))
    torch.testing.assert_close(centre.value, before)
    assert centre.value.isfinite().all()


def test_it_rests_in_evaluation_and_is_saved() -> None:
    centre = Centre(5).eval()
    centre(torch.ones(3, 5), 0.1)
    assert centre.value.abs().sum() == 0
    assert list(centre.state_dict()) == ["value"]
