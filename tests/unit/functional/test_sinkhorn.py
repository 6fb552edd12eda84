"""Balanced codes."""

from __future__ import annotations

import pytest
import torch
from lightly.loss.swav_loss import sinkhorn as peer

from ssl_suite.functional.sinkhorn import sinkhorn


@pytest.mark.parametrize(("temperature", "iterations"), [(0.05, 3), (0.5, 1), (1.0, 10)])
def test_codes_equal_lightly_where_that_does_not_overflow(temperature: float, iterations: int) -> None:
    torch.manual_seed(0)
    scores = torch.rand(12, 5) * 2 - 1
    theirs = peer(scores, iterations, temperature)
    torch.testing.assert_close(sinkhorn(scores, temperature, iterations), theirs, atol=1e-6, rtol=1e-4)


def test_samples_spend_one_and_prototypes_get_the_same() -> None:
    torch.manual_seed(0)
    scores = torch.randn(20, 4)
    scores[:, 0] += 2.0  # all samples like the first prototype best
    codes = sinkhorn(scores, 0.5, 50)
    torch.testing.assert_close(codes.sum(1), torch.ones(20))
    torch.testing.assert_close(codes.sum(0), torch.full((4,), 5.0), atol=1e-3, rtol=0)


def test_large_scores_neither_overflow_nor_vanish() -> None:
    scores = torch.tensor([[100.0, 90.0], [-100.0, -90.0], [0.0, 1.0]])
    codes = sinkhorn(scores, 0.04)
    assert codes.isfinite().all()
    torch.testing.assert_close(codes.sum(1), torch.ones(3))
    assert not peer(scores, 3, 0.04).isfinite().all()


def test_half_precision_scores_and_autocast_give_float32_codes_without_gradient() -> None:
    scores = torch.randn(6, 3, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        codes = sinkhorn(scores.half())
    assert codes.dtype == torch.float32
    assert not codes.requires_grad
