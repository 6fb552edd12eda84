"""Boxes and regions: how much they cover, where they may lie, and that pictures and masks are pasted alike."""

from __future__ import annotations

import pytest
import torch

from ssl_suite.functional.mixing import class_regions, cutmix_boxes, partners, paste
from ssl_suite.functional.random import Draw, sample_keys
from ssl_suite.functional.segmentation import IGNORE


def draws(n: int, epoch: int = 0) -> Draw:
    return Draw(sample_keys(0, torch.full((n,), epoch), torch.arange(n)))


def test_partners_are_neighbours_so_that_halves_mix_as_the_whole():
    assert partners(6, torch.device("cpu")).tolist() == [1, 0, 3, 2, 5, 4]
    assert partners(5, torch.device("cpu")).tolist() == [1, 0, 3, 2, 4]


def test_pictures_masks_and_distributions_are_pasted_alike():
    x, y = torch.randn(4, 3, 5, 6), torch.randint(0, 9, (4, 5, 6))
    where = torch.rand(4, 5, 6) < 0.5
    mixed_x, mixed_y = paste(x, where), paste(y, where)
    for i in range(4):
        for r in range(5):
            for c in range(6):
                source = i ^ 1 if where[i, r, c] else i
                assert torch.equal(mixed_x[i, :, r, c], x[source, :, r, c])
                assert mixed_y[i, r, c] == y[source, r, c]


def test_a_box_is_a_box_of_the_area_asked_for():
    boxes = cutmix_boxes(draws(4000), 40, 60, p=0.5)
    some = boxes.flatten(1).any(1)
    assert 0.46 < some.float().mean() < 0.54
    boxes = boxes[some]
    rows, columns = boxes.any(2), boxes.any(1)
    assert torch.equal(boxes, rows[:, :, None] & columns[:, None])                       # a product of two intervals ...
    for line in (rows, columns):
        edges = (line[:, 1:] != line[:, :-1]).sum(1) + line[:, 0] + line[:, -1]
        assert (edges == 2).all()                                                        # ... without a gap
    area = boxes.float().mean((1, 2))
    assert area.min() > 0.01
    assert area.max() < 0.42
    assert area.mean() == pytest.approx(0.21, abs=0.01)                                  # the mean of U(0.02, 0.4), hardly cut off
    assert rows[:, 0].any()
    assert columns[:, -1].any()


def test_half_of_the_classes_rounded_up_are_chosen():
    target = torch.randint(0, 5, (300, 8, 8), generator=torch.Generator().manual_seed(0))
    target[:100][target[:100] > 2] = 0
    target[100:200] = 4
    target[:, 0, 0] = IGNORE
    regions = class_regions(target, 6, draws(300))
    assert not regions[:, 0, 0].any()
    for mask, chosen, expected in zip(target, regions, [2] * 100 + [1] * 100 + [3] * 100, strict=True):
        classes = mask[chosen].unique()
        assert len(classes) == expected
        assert torch.equal(chosen, torch.isin(mask, classes))                            # whole classes
    often = torch.stack([(regions[:100] & (target[:100] == c)).flatten(1).any(1) for c in range(3)]).float().mean(1)
    assert (often - 2 / 3).abs().max() < 0.15


def test_a_new_epoch_cuts_anew():
    assert not torch.equal(cutmix_boxes(draws(8), 20, 20, 1.0), cutmix_boxes(draws(8, 1), 20, 20, 1.0))
