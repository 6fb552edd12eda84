"""The test that a learned cue must pass."""

from __future__ import annotations

import pytest
import torch

from ssl_suite.functional.handover import operating_point


def test_the_highest_threshold_that_detects_enough() -> None:
    estimate = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0, 6.0])
    positive = torch.tensor([False, False, True, False, True, True])
    assert operating_point(estimate, positive, 1.0, fewest=3) == pytest.approx((3.0, 1.0, 1 / 3))
    assert operating_point(estimate, positive, 0.6, fewest=3) == pytest.approx((5.0, 2 / 3, 0.0))


@pytest.mark.parametrize("tpr", [0.5, 0.9, 1.0])
def test_against_every_threshold(tpr: float) -> None:
    generator = torch.Generator().manual_seed(0)
    positive = torch.rand(60, generator=generator) > 0.5
    estimate = (torch.randn(60, generator=generator) + positive).mul(4).round() / 4  # with ties
    point = operating_point(estimate, positive, tpr)
    assert point is not None
    good = [c for c in estimate.unique().tolist() if (estimate[positive] >= c).double().mean() >= tpr]
    assert point.cut == max(good)
    assert point.tpr == pytest.approx((estimate[positive] >= point.cut).double().mean().item())
    assert point.fpr == pytest.approx((estimate[~positive] >= point.cut).double().mean().item())


@pytest.mark.parametrize("positive", [[True, True], [False, False]])
def test_no_verdict_with_one_kind(positive: list[bool]) -> None:
    assert operating_point(torch.tensor([1.0, 2.0]), torch.tensor(positive), 0.9, fewest=1) is None


@pytest.mark.parametrize("kind", [True, False])
def test_no_verdict_with_too_few_of_a_kind(kind: bool) -> None:
    estimate, positive = torch.arange(30.0), (torch.arange(30) < 9) == kind
    assert operating_point(estimate, positive, 0.9) is None
    assert operating_point(estimate, positive, 0.9, fewest=9) is not None


def test_no_verdict_without_frames_or_estimates() -> None:
    assert operating_point(torch.zeros(0), torch.zeros(0, dtype=torch.bool), 0.9, fewest=1) is None
    assert operating_point(torch.tensor([1.0, torch.nan]), torch.tensor([True, False]), 0.9, fewest=1) is None
