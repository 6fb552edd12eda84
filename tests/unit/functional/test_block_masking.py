"""Block masks: where they lie, how much they hide, and that a sample's blocks are its own."""

from __future__ import annotations

import pytest
import torch

from ssl_suite.functional.block_masking import (
    block_mask,
    kept_blocks,
    most_in_block,
    places,
    random_blocks,
    rectangles,
    rows_and_columns,
    unit_mask,
)
from ssl_suite.functional.random import Draw

SCALE, ASPECT = (0.15, 0.2), (0.75, 1.5)
LENGTHS = torch.tensor([30, 17, 8, 1])


def draw(n: int = 512) -> Draw:
    return Draw(torch.arange(n) * 7_919 + 1)


def is_rectangle(mask: torch.Tensor) -> bool:
    rows, cols = mask.any(1).nonzero().flatten(), mask.any(0).nonzero().flatten()
    return bool(mask[rows[0]:rows[-1] + 1, cols[0]:cols[-1] + 1].all())


def test_rectangles_are_where_they_are_told() -> None:
    one = torch.tensor([1.0])
    mask = rectangles(one, 2 * one, 2 * one, 3 * one, (4, 6))[0].view(4, 6)
    expected = torch.zeros(4, 6, dtype=torch.bool)
    expected[1:3, 2:5] = True
    assert torch.equal(mask, expected)


def test_a_sequence_is_a_grid_of_one_row() -> None:
    assert rows_and_columns((3, 5), 15) == (3, 5)
    assert rows_and_columns((40,), 15) == (1, 15)


def test_random_blocks_are_rectangles_of_the_right_size_anywhere() -> None:
    blocks = random_blocks(draw(), 4, (14, 14), SCALE, ASPECT)
    assert blocks.shape == (512, 4, 196)
    assert all(is_rectangle(block.view(14, 14)) for block in blocks[:32].flatten(0, 1))
    share = blocks.float().mean()
    assert share == pytest.approx(0.175, abs=0.01)
    assert int(blocks.sum(2).max()) <= most_in_block((14, 14), SCALE, ASPECT) < 60
    assert (blocks.any(1).float().mean(0) > 0.02).all(), "every place is reached"
    assert len(blocks[:, 0].unique(dim=0)) > 200
    assert torch.equal(blocks[7:9], random_blocks(draw().rows(slice(7, 9)), 4, (14, 14), SCALE, ASPECT)), "whatever the batch"


def test_spans_stay_within_the_row() -> None:
    valid = torch.arange(30) < LENGTHS[:, None]
    spans = random_blocks(draw(4), 50, (1, 30), (0.2, 0.4), ASPECT, valid)
    assert not (spans & ~valid[:, None]).any()
    sizes = spans.sum(2).float()
    assert (sizes >= 1).all()
    torch.testing.assert_close(sizes.mean(1)[:3], 0.3 * LENGTHS[:3].float(), rtol=0.2, atol=0.3)
    assert all(is_rectangle(span[None]) for span in spans.flatten(0, 1))


def test_block_mask_hides_about_the_ratio_and_never_more() -> None:
    ratio = torch.linspace(0, 0.5, 512)
    hidden = block_mask(draw(), (14, 14), ratio).sum(1)
    wanted = (ratio * 196).floor()
    assert (hidden <= wanted).all()
    assert (hidden >= wanted - 8).all()
    assert hidden[0] == 0
    mask = block_mask(draw(64), (14, 14), torch.full((64,), 0.3)).view(64, 14, 14)
    same = (mask[:, :, 1:] & mask[:, :, :-1]).sum() / mask.sum()
    assert same > 0.6, "blocks, not single tokens"
    valid = torch.arange(30) < LENGTHS[:, None]
    spans = block_mask(draw(4), (1, 30), torch.full((4,), 0.5), valid=valid)
    assert not (spans & ~valid).any()
    assert (spans.sum(1) <= 0.5 * LENGTHS).all()


@pytest.mark.parametrize(("shape", "side", "count"), [((14, 14), 3, 39), ((4, 4), 2, 6), ((1, 30), 5, 9), ((1, 3), 5, 2)])
def test_kept_blocks_are_distinct_and_as_many_as_asked(shape: tuple[int, int], side: int, count: int) -> None:
    kept = kept_blocks(draw(64), shape, side, count)
    assert kept.shape == (64, count)
    assert all(len(row.unique()) == count for row in kept)
    mask = torch.zeros(64, shape[0] * shape[1], dtype=torch.bool).scatter(1, kept, True).view(64, *shape)
    together = (mask[:, :, 1:] & mask[:, :, :-1]).sum() / mask.sum()
    assert together > count / (shape[0] * shape[1]) + 0.1 or shape == (1, 3), "shown tokens have shown neighbours"


def test_kept_blocks_of_short_rows_exist() -> None:
    valid = torch.arange(30) < LENGTHS[:, None]
    kept = kept_blocks(draw(4), (1, 30), 5, 9, valid)
    for row, n in zip(kept, LENGTHS.tolist(), strict=True):
        assert (row[:min(n, 9)] < n).all()


@pytest.mark.parametrize(("shape", "unit", "ratio", "cells"), [((6, 6), 2, 0.6, 6), ((4, 4), 1, 0.6, 10), ((5, 7), 2, 0.5, 6)])
def test_unit_mask_hides_whole_cells(shape: tuple[int, int], unit: int, ratio: float, cells: int) -> None:
    mask = unit_mask(draw(64), shape, unit, ratio).view(64, *shape)
    found = mask[:, ::unit, ::unit]
    assert (found.flatten(1).sum(1) == cells).all()
    grown = found.repeat_interleave(unit, 1).repeat_interleave(unit, 2)[:, :shape[0], :shape[1]]
    assert torch.equal(mask, grown)


def test_unit_mask_counts_the_cells_of_the_row() -> None:
    valid = torch.arange(30) < LENGTHS[:, None]
    mask = unit_mask(draw(4), (1, 30), 3, 0.6, valid)
    assert not (mask & ~valid).any()
    assert mask[:, ::3].sum(1).tolist() == [6, 4, 2, 1]


def test_places_are_padded_and_say_so() -> None:
    mask = torch.tensor([[False, True, True, False], [True, False, False, False]])
    ids, count = places(mask, 3)
    assert ids[0, :2].tolist() == [1, 2]
    assert count.tolist() == [[True, True, False], [True, False, False]]
    assert places(mask, 1)[0].tolist() == [[1], [0]]
