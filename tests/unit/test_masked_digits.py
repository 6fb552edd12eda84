"""The small experiment on masked digits: masks, errors, and where a domain goes on from."""

from __future__ import annotations

import sys

import pytest
import torch
from torch import nn

from tests.conftest import ROOT

sys.path.insert(0, str(ROOT / "scripts"))
import masked_digits


def test_masks_hide_whole_patches() -> None:
    mask = masked_digits.masks(50, torch.Generator().manual_seed(0)).view(50, 4, 2, 4, 2)
    assert torch.equal(mask, mask[:, :, :1, :, :1].expand_as(mask))
    assert (mask[:, :, 0, :, 0].sum((1, 2)) == 10).all()


def test_the_error_is_that_of_hidden_pixels() -> None:
    class Zero(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.zeros(len(x), 64)

    x, mask = torch.full((2, 64), 0.5), torch.zeros(2, 64)
    mask[:, :4] = 1.0
    x[:, 10:] = 9.0
    assert masked_digits.error(Zero(), x, mask).item() == pytest.approx(0.25 / 0.14)


@pytest.mark.parametrize("arm", ["cosine", "infinite"])
def test_a_run_tells_all_of_its_figures(arm: str) -> None:
    found = masked_digits.one_run(("upright", "tilted"), arm, 3e-3, True, 0, steps=20)
    assert found.keys() == {"mean", "first", "newest", "annealing"}
    assert found["mean"] == pytest.approx((found["first"] + found["newest"]) / 2)
    assert (found["annealing"] == found["annealing"]) == (arm == "infinite"), "only a plateau is annealed"
