"""Span masks: how much they hide, what they never hide, and that a sample's spans are its own."""

from __future__ import annotations

import math

import pytest
import torch

from ssl_suite.functional.random import Draw, sample_keys
from ssl_suite.functional.span_masking import cut_to_smallest, most_masked, span_mask


def draw(n: int, seed: int = 0) -> Draw:
    return Draw(sample_keys(seed, torch.zeros(n, dtype=torch.int64), torch.arange(n), 100))


def valid_frames(lengths: list[int], n: int) -> torch.Tensor:
    return torch.arange(n) < torch.tensor(lengths)[:, None]


def runs(row: torch.Tensor) -> list[int]:
    """Lengths of the runs of True."""
    found, current = [], 0
    for hidden in [*row.tolist(), False]:
        if hidden:
            current += 1
        elif current:
            found.append(current)
            current = 0
    return found


def test_share_of_hidden_frames_before_and_after_the_cut() -> None:
    mask = span_mask(draw(400), torch.ones(400, 500, dtype=torch.bool), 0.65, 10)
    assert mask.float().mean().item() == pytest.approx(1 - math.exp(-0.65), abs=0.02)
    cut = [cut_to_smallest(draw(16, s), m := span_mask(draw(16, s), torch.ones(16, 500, dtype=torch.bool), 0.65, 10),
                           m.sum(1).min()) for s in range(20)]
    assert 0.40 < torch.stack(cut).float().mean().item() < 0.45


def test_spans_are_whole_before_the_cut() -> None:
    mask = span_mask(draw(64), torch.ones(64, 200, dtype=torch.bool), 0.3, 7)
    assert min(min(runs(row)) for row in mask) >= 7


@pytest.mark.parametrize("probability", [0.0, 0.3, 0.65, 0.95, 3.0])
def test_short_and_padded_rows(probability: float) -> None:
    lengths = [40, 3, 4, 5, 9, 12, 20, 2, 1, 0]
    valid = valid_frames(lengths, 40)
    for seed in range(50):
        mask = span_mask(draw(10, seed), valid, probability, 10)
        hidden = mask.sum(1)
        assert not (mask & ~valid).any(), "hidden padding"
        assert (hidden[:7] < torch.tensor(lengths[:7])).all(), "a row hidden whole"
        assert (hidden[:7] >= 2).all(), "fewer than two frames cannot be told apart"
        assert (hidden[7:] == 0).all(), "rows of fewer than three frames"
        assert hidden.max() <= most_masked(40, probability, 10)


def test_at_least_two_spans() -> None:
    mask = span_mask(draw(200), torch.ones(200, 100, dtype=torch.bool), 0.0, 10)
    assert (mask.sum(1) > 10).all()
    assert (span_mask(draw(200), torch.ones(200, 100, dtype=torch.bool), 0.0, 10, min_spans=0).sum() == 0)


def test_a_sample_has_its_spans_in_every_batch() -> None:
    keys = draw(8).keys
    valid = valid_frames([50, 60, 30, 44, 50, 21, 60, 60], 60)
    together = span_mask(Draw(keys), valid, 0.65, 10)
    alone = torch.cat([span_mask(Draw(keys[i : i + 1]), valid[i : i + 1], 0.65, 10) for i in range(8)])
    torch.testing.assert_close(together, alone)
    assert not torch.equal(together, span_mask(draw(8, seed=1), valid, 0.65, 10))


def test_cut_leaves_every_row_the_same_count_and_hides_nothing_new() -> None:
    mask = span_mask(draw(16), torch.ones(16, 100, dtype=torch.bool), 0.65, 10)
    smallest = mask.sum(1).min()
    cut = cut_to_smallest(draw(16, 3), mask, smallest)
    assert (cut.sum(1) == smallest).all()
    assert not (cut & ~mask).any()


@pytest.mark.parametrize(("probability", "span"), [(-0.1, 10), (0.5, 0)])
def test_bad_arguments(probability: float, span: int) -> None:
    with pytest.raises(ValueError, match="mask_prob"):
        span_mask(draw(2), torch.ones(2, 20, dtype=torch.bool), probability, span)
