"""Masks over tokens."""

from __future__ import annotations

import pytest
import torch

from ssl_suite.functional.masking import (
    mask_from_order,
    masked_mean,
    random_order,
    standardise_patches,
    take,
    visible_count,
)
from ssl_suite.functional.random import Draw


def draw(n: int = 512) -> Draw:
    return Draw(torch.arange(n) * 7_919 + 1)


def test_random_order_is_a_permutation_with_missing_tokens_last() -> None:
    valid = torch.arange(10) < torch.tensor([10, 3, 1, 7])[:, None]
    order = random_order(draw(4), 10, valid)
    assert torch.equal(order.sort(1).values, torch.arange(10).expand(4, 10))
    for row, n in zip(order, (10, 3, 1, 7), strict=True):
        assert set(row[:n].tolist()) == set(range(n))


def test_every_token_is_hidden_equally_often() -> None:
    mask = mask_from_order(random_order(draw(4096), 16), 4)
    assert (mask.sum(1) == 12).all()
    assert (mask.float().mean(0) - 0.75).abs().max() < 0.03


@pytest.mark.parametrize(("n", "ratio", "count"), [(16, 0.75, 4), (196, 0.75, 49), (10, 0.99, 1), (3, 0.0, 3), (1, 0.75, 1)])
def test_visible_count(n: int, ratio: float, count: int) -> None:
    assert visible_count(n, ratio) == count


@pytest.mark.parametrize("ratio", [1.0, -0.1, 7.0])
def test_a_wrong_ratio_is_named(ratio: float) -> None:
    with pytest.raises(ValueError, match=f"mask_ratio.*{ratio}"):
        visible_count(4, ratio)


def test_take_picks_rows() -> None:
    tokens = torch.arange(24.0).view(2, 4, 3)
    ids = torch.tensor([[3, 0], [1, 1]])
    assert torch.equal(take(tokens, ids), torch.stack([tokens[0, [3, 0]], tokens[1, [1, 1]]]))


def test_standardise_patches_is_the_official_formula() -> None:
    x = torch.randn(2, 3, 12) * 4 + 7
    expected = (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True) + 1e-6) ** 0.5
    torch.testing.assert_close(standardise_patches(x), expected)
    assert torch.isfinite(standardise_patches(torch.ones(1, 1, 12))).all(), "a plain patch has no variance"


def test_masked_mean() -> None:
    values = torch.tensor([[1.0, 2.0, 30.0], [4.0, 50.0, 60.0]])
    mask = torch.tensor([[True, True, False], [True, False, False]])
    assert masked_mean(values, mask) == pytest.approx(7 / 3)
    assert masked_mean(values, torch.zeros_like(mask)) == 0
