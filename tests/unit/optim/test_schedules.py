"""Schedules at their corners."""

from __future__ import annotations

import math

import pytest

from ssl_suite.optim import Constant, Cosine, FixMatchCosine, Frozen, Infinite, TriStage


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


WORKED = Infinite(warmup=0.05, cooldown=0.5, plateau=0.8, constant=0.5, final=0.05)


def test_infinite_in_its_four_phases() -> None:
    assert [WORKED(s, 100) for s in (0, 2, 4)] == pytest.approx([1 / 6, 3 / 6, 5 / 6])
    assert WORKED(5, 100) == 1.0
    assert WORKED(55, 200) == pytest.approx(0.75)
    assert [WORKED(s, 100) for s in (50, 65, 80)] == pytest.approx([0.5, 0.5, 0.5])
    assert WORKED(90, 100) == pytest.approx(0.1581, abs=1e-4)
    assert WORKED(100, 100) == WORKED(500, 100) == pytest.approx(0.05)


def test_infinite_has_no_jumps_and_only_the_first_data_set_warms_up() -> None:
    total = 20_000
    for edge in (0.05, 0.5, 0.8, 1.0):
        before, after = (WORKED(round(edge * total) + side, total) for side in (-1, 0))
        assert before == pytest.approx(after, abs=2e-3)
    later = Infinite(warmup=0.05, cooldown=0.5, plateau=0.8, constant=0.5, final=0.05, first=False)
    assert {later(s, 100) for s in range(80)} == {0.5}
    assert [later(s, 100) for s in range(80, 101)] == [WORKED(s, 100) for s in range(80, 101)]


@pytest.mark.parametrize(("given", "said"), [({"warmup": 0.4}, "warmup=0.4"), ({"plateau": 1.2}, "plateau=1.2"),
                                             ({"final": 0.0}, "final=0.0"), ({"constant": 0.005}, "constant=0.005")])
def test_infinite_refuses_what_is_out_of_order(given: dict[str, float], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Infinite(**given)  # type: ignore[arg-type]


@pytest.mark.parametrize("schedule", [Constant(), Cosine(), FixMatchCosine(), TriStage(), Infinite()])
def test_factors_are_positive_and_at_most_one_before_the_end(schedule: object) -> None:
    for total in (1, 2, 7, 100):
        assert all(0.0 < schedule(step, total) <= 1.0 for step in range(total))  # type: ignore[operator]
