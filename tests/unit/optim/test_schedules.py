"""Schedules at their corners."""

from __future__ import annotations

import math

import pytest

from ssl_suite.optim import Constant, Cosine, FixMatchCosine, Frozen, TriStage


def test_cosine() -> None:
    cosine = Cosine(warmup=0.1, final=0.01)
    assert [cosine(s, 100) for s in (0, 4, 9)] == pytest.approx([0.1, 0.5, 1.0])
    assert cosine(10, 100) == pytest.approx(1.0)
    assert cosine(55, 100) == pytest.approx((1 + 0.01) / 2)
    assert cosine(100, 100) == cosine(500, 100) == pytest.approx(0.01)
    assert Cosine(warmup=0.0)(0, 10) == 1.0
    assert Cosine()(0, 1) > 0, "a run of one step must learn"


def test_fixmatch_ends_at_a_fifth() -> None:
    assert FixMatchCosine()(0, 10) == 1.0
    assert FixMatchCosine()(10, 10) == pytest.approx(math.cos(7 * math.pi / 16))
    assert FixMatchCosine()(20, 10) == FixMatchCosine()(10, 10)


def test_tri_stage() -> None:
    stage = TriStage(warmup=0.1, hold=0.4, initial=0.01, final=0.05)
    assert stage(0, 100) == pytest.approx(0.01)
    assert [stage(s, 100) for s in (10, 30, 49)] == [1.0, 1.0, 1.0]
    assert stage(75, 100) == pytest.approx(math.sqrt(0.05))
    assert stage(100, 100) == pytest.approx(0.05)


def test_frozen_rests_and_then_joins_the_other() -> None:
    schedule, cosine = Frozen(Cosine(), 0.2), Cosine()
    assert [schedule(s, 100) for s in (0, 19)] == [0.0, 0.0]
    assert [schedule(s, 100) for s in (20, 99)] == [cosine(s, 100) for s in (20, 99)]
    assert Frozen(Constant(), 0.0)(0, 10) == 1.0


@pytest.mark.parametrize("schedule", [Constant(), Cosine(), FixMatchCosine(), TriStage()])
def test_factors_are_positive_and_at_most_one_before_the_end(schedule: object) -> None:
    for total in (1, 2, 7, 100):
        assert all(0.0 < schedule(step, total) <= 1.0 for step in range(total))  # type: ignore[operator]
