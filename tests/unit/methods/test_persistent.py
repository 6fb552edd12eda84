"""The state machine between two cues, what it learns from, and an Adapter's promises."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ssl_suite.functional.handover import OperatingPoint
from ssl_suite.methods.adaptation import persistent
from ssl_suite.methods.adaptation.persistent import PersistentSSL
from ssl_suite.nn.textons import TextonRegressor

TAU = 4.0
GOOD, BAD = OperatingPoint(5.0, 0.9, 0.1), OperatingPoint(5.0, 0.9, 0.8)


class Sensor:
    """A trusted cue that shows what it is told."""

    available = True

    def __init__(self, value: float = 1.0, confident: int = 100) -> None:
        self.value, self.confident, self.reads = value, confident, 0

    def read(self) -> tuple[float, int]:
        assert self.available, "a cue that is off was read"
        self.reads += 1
        return self.value, self.confident


class Echo(nn.Module):
    """A learned cue that, once fitted, says the first number of the frame."""

    width = 1

    def __init__(self) -> None:
        super().__init__()
        self.fits: list[int] = []

    def describe(self, x: Tensor, index: int) -> Tensor:
        return x.flatten()[:1]

    def fit(self, h: Tensor, value: Tensor) -> None:
        self.fits.append(len(h))

    def forget(self) -> None:
        self.fits.clear()

    def forward(self, h: Tensor) -> Tensor:
        return h[:, 0] if self.fits else torch.full((len(h),), torch.nan)


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Results of the tests to come, in order; the last one stays."""
    def set_to(*points: OperatingPoint | None) -> None:
        queue = list(points)
        monkeypatch.setattr(persistent, "operating_point", lambda *args: queue.pop(0) if len(queue) > 1 else queue[0])
    return set_to


def machine(sensor: Sensor | None = None, **options: Any) -> PersistentSSL:
    settings = {"threshold": TAU, "window": 10, "warmup": 0, "overrides_max": 20.0, **options}
    return PersistentSSL(sensor or Sensor(), learner=Echo(), **settings)


def fly(learner: PersistentSSL, frames: int, estimate: float = 1.0) -> list[str]:
    """Frames on which the learned cue would estimate so much; who decided."""
    return [learner.predict_and_adapt(torch.tensor([estimate]))[0].by for _ in range(frames)]


def test_learn_then_guarded_at_the_end_of_a_window(script: Any) -> None:
    script(GOOD)
    learner = machine()
    assert fly(learner, 10) == ["trusted"] * 10
    assert learner.state == "guarded"
    assert learner.cut == GOOD.cut
    assert fly(learner, 3) == ["learned"] * 3


def test_a_failed_test_keeps_the_trusted_cue(script: Any) -> None:
    script(BAD, BAD, GOOD)
    learner = machine()
    assert fly(learner, 30) == ["trusted"] * 30
    assert learner.state == "guarded"


def test_no_verdict_changes_nothing(script: Any) -> None:
    script(None, GOOD, None)
    learner = machine()
    fly(learner, 10)
    assert (learner.state, learner.cut) == ("learn", TAU)
    fly(learner, 20)
    assert (learner.state, learner.cut) == ("guarded", GOOD.cut)


def test_warmup_holds_the_learned_cue_back(script: Any) -> None:
    script(GOOD)
    learner = machine(warmup=30)
    fly(learner, 29)
    assert learner.state == "learn"
    fly(learner, 1)
    assert learner.state == "guarded"


def test_a_failed_test_demotes(script: Any) -> None:
    script(GOOD, BAD)
    learner = machine()
    fly(learner, 20)
    assert learner.state == "learn"
    assert not learner.permitted
    assert fly(learner, 1) == ["trusted"]


def test_overrides_decide_and_demote_at_once(script: Any) -> None:
    script(GOOD)
    sensor = Sensor()
    learner = machine(sensor)  # two overrides in a window of ten are acceptable
    fly(learner, 10)
    sensor.value = 1.3 * TAU
    decision = learner.predict(torch.tensor([1.0]))
    assert (decision.close, decision.by) == (True, "override")
    assert fly(learner, 2) == ["override"] * 2
    assert learner.state == "guarded"
    assert fly(learner, 1) == ["override"]
    assert learner.state == "learn"
    assert fly(learner, 1) == ["trusted"]


def test_the_guard_is_stricter_than_the_threshold_and_silent_where_both_agree(script: Any) -> None:
    script(GOOD)
    sensor = Sensor()
    learner = machine(sensor)
    fly(learner, 10)
    sensor.value = 1.2 * TAU
    assert fly(learner, 1) == ["learned"], "too close, but not imminent"
    sensor.value = 2.0 * TAU
    assert fly(learner, 1, estimate=9.0) == ["learned"], "the learned cue says so itself"
    assert learner.predict(torch.tensor([9.0])).close


def test_old_overrides_are_forgotten_after_a_window(script: Any) -> None:
    script(GOOD)
    sensor = Sensor()
    learner = machine(sensor)
    fly(learner, 10)
    for _ in range(5):
        sensor.value = 2.0 * TAU
        fly(learner, 2)
        sensor.value = 1.0
        fly(learner, 10)
    assert learner.state == "guarded"


def test_solo_needs_a_full_window_under_guard(script: Any) -> None:
    script(GOOD)
    sensor = Sensor()
    learner = machine(sensor)
    fly(learner, 19)
    assert not learner.permitted
    sensor.available = False
    assert fly(learner, 1) == ["nobody"]
    assert learner.predict(torch.tensor([1.0])).close, "nobody knows: the safe answer"
    assert learner.state == "guarded"
    sensor.available = True
    fly(learner, 1)
    assert learner.permitted


def test_solo_never_reads_the_trusted_cue_and_stays(script: Any) -> None:
    script(GOOD, GOOD, BAD)  # no further test may be made
    sensor = Sensor()
    learner = machine(sensor)
    fly(learner, 20)
    reads, fits, sensor.available = sensor.reads, list(learner.learner.fits), False
    for estimate in (1.0, 9.0) * 50:
        decision, report = learner.predict_and_adapt(torch.tensor([estimate]))
        assert (decision.by, decision.close) == ("learned", estimate >= learner.cut)
        assert learner.predict(torch.tensor([estimate])) == decision
        assert learner.state == "solo"
        assert (report.verdict, report.n_used) == ("skip", 0)
    assert sensor.reads == reads
    assert learner.learner.fits == fits
    sensor.available = True
    assert fly(learner, 1) == ["learned"]
    assert learner.state == "guarded"


def test_cold_turkey_trusts_to_the_end(script: Any) -> None:
    script(GOOD)
    sensor = Sensor()
    learner = machine(sensor, strategy="cold_turkey")
    assert fly(learner, 40) == ["trusted"] * 40
    sensor.available = False
    assert fly(learner, 5) == ["learned"] * 5
    assert learner.state == "solo"
    sensor.available = True
    assert fly(learner, 5) == ["trusted"] * 5


def test_cold_turkey_is_not_permitted_to_fly_alone_after_a_failed_test(script: Any) -> None:
    script(BAD)
    sensor = Sensor()
    learner = machine(sensor, strategy="cold_turkey")
    fly(learner, 20)
    sensor.available = False
    assert fly(learner, 2) == ["nobody"] * 2


def test_dagger_has_no_test_and_no_guard(script: Any) -> None:
    script(BAD)
    sensor = Sensor()
    learner = machine(sensor, strategy="dagger", warmup=20)
    assert fly(learner, 20) == ["trusted"] * 20
    sensor.value = 3.0 * TAU
    assert fly(learner, 40) == ["learned"] * 40
    assert learner.state == "guarded"


def test_the_newest_frames_are_tested_by_what_was_said_before_they_were_learned(monkeypatch: pytest.MonkeyPatch) -> None:
    tested: list[list[list[float]]] = []

    def spy(estimate: Tensor, positive: Tensor, tpr: float) -> OperatingPoint:
        tested.append([estimate.tolist(), positive.tolist()])
        return GOOD
    monkeypatch.setattr(persistent, "operating_point", spy)
    learner = machine(tested=15)
    for n in range(30):
        learner.trusted.value = float(n % 7)
        fly(learner, 1, float(n))
    assert [estimates for estimates, _ in tested] == [[], [*range(10, 20)], [*range(15, 30)]], "none before the first fit"
    assert tested[2][1] == [n % 7 > TAU for n in range(15, 30)]
    assert learner.learner.fits == [10, 20, 30], "no frame is set aside"


@pytest.mark.parametrize(("value", "confident"), [(1.0, 49), (math.nan, 0), (math.inf, 500)])
def test_readings_that_are_no_labels(value: float, confident: int) -> None:
    learner = machine(Sensor(value, confident))
    for _ in range(30):
        decision, report = learner.predict_and_adapt(torch.tensor([1.0]))
        assert (decision.close, decision.by) == (True, "trusted")
        assert (report.verdict, report.n_used) == ("skip", 0)
        assert "50" in report.reason
    assert learner.state == "learn"
    assert not len(learner.store.to_learn()[0])


def test_a_frame_that_is_not_finite_is_not_learned_from_and_means_too_close(script: Any) -> None:
    script(GOOD)
    learner = machine()
    fly(learner, 10)
    decision, report = learner.predict_and_adapt(torch.tensor([torch.nan]))
    assert (decision.close, decision.by, report.verdict) == (True, "learned", "skip")
    fly(learner, 9)
    assert learner.store.to_learn()[0].isfinite().all()


# With a real learner -------------------------------------------------------------------------------------------------


def wall(nearness: float, n: int) -> Tensor:
    """Stripes that widen as the wall comes nearer, (1, 16, 24)."""
    noise = 0.05 * torch.randn(1, 16, 24, generator=torch.Generator().manual_seed(n))
    return 0.5 + 0.4 * torch.sin(torch.arange(24.0) / nearness).expand(1, 16, 24) + noise


def real(sensor: Sensor, **options: Any) -> PersistentSSL:
    learner = TextonRegressor(channels=1, textons=8, patches=60)
    learner.calibrate(torch.stack([wall(1.0 + n / 10, n) for n in range(50)]))
    return PersistentSSL(sensor, learner=learner, threshold=3.0, window=40, warmup=80, **options)


def same(a: Any, b: Any) -> bool:
    """Whether nested containers of tensors and numbers are equal, bit by bit."""
    if isinstance(a, Tensor):
        return torch.equal(a.nan_to_num(-1.0), b.nan_to_num(-1.0)) if a.is_floating_point() else torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    return len(a) == len(b) and all(map(same, a, b)) if isinstance(a, list | tuple) else a == b


def journey(learner: PersistentSSL, start: int, stop: int) -> list[Any]:
    out = []
    for n in range(start, stop):
        learner.trusted.value = 3.0 + 2.0 * math.sin(n / 9)
        out.append(learner.predict_and_adapt(wall(learner.trusted.value, n)))
    return out


def test_it_learns_the_decision_and_flies_alone() -> None:
    learner = real(Sensor())
    journey(learner, 0, 240)
    assert learner.state == "guarded"
    assert learner.permitted
    learner.trusted.available = False
    flown = journey(learner, 300, 400)
    right = [decision.close == (3.0 + 2.0 * math.sin(n / 9) > 3.0) for n, (decision, _) in enumerate(flown, 300)]
    assert all(decision.by == "learned" for decision, _ in flown)
    assert sum(right) >= 85


def test_predict_changes_nothing_and_foretells() -> None:
    learner = real(Sensor())
    journey(learner, 0, 130)
    before = learner.state_dict()
    foretold = learner.predict(wall(2.0, 5))
    assert same(learner.state_dict(), before)
    assert learner.predict_and_adapt(wall(2.0, 5))[0] == foretold


def test_reset_goes_back_to_the_first_frame() -> None:
    learner = real(Sensor())
    fresh, first = learner.state_dict(), journey(learner, 0, 130)
    learner.reset()
    assert same(learner.state_dict(), fresh)
    assert str(journey(learner, 0, 130)) == str(first)


@pytest.mark.parametrize("stop", [0, 25, 130])
def test_a_saved_state_goes_on_as_if_nothing_had_happened(stop: int, tmp_path: Path) -> None:
    one, two = real(Sensor()), real(Sensor())
    journey(one, 0, stop)
    one.save(tmp_path / "cue.pt")
    two.load(tmp_path / "cue.pt")
    assert str(journey(one, stop, stop + 60)) == str(journey(two, stop, stop + 60))
    assert same(one.state_dict(), two.state_dict())


def test_a_state_of_other_settings_is_refused() -> None:
    state = real(Sensor()).state_dict()
    with pytest.raises(ValueError, match=r"adapter\.tpr=0\.8"):
        real(Sensor(), tpr=0.8).load_state_dict(state)


def test_memory_stays_bounded() -> None:
    learner = machine(capacity=3)
    for n in range(600):
        learner.trusted.value = n % 40 / 10
        fly(learner, 1)
        assert len(learner.store.to_learn()[0]) <= 16 * 3
        assert len(learner.store.fresh) <= learner.window
        assert len(learner.pairs) <= learner.tested


@pytest.mark.parametrize(("options", "message"), [
    ({"strategy": "wheels"}, "strategy='wheels'"), ({"threshold": 0.0}, r"threshold=0\.0"), ({"tpr": 0.0}, r"tpr=0\.0"),
    ({"fpr_max": 1.5}, r"fpr_max=1\.5"), ({"override": 0.9}, r"override=0\.9"), ({"window": 0}, "window=0"),
    ({"tested": 0}, "tested=0"), ({"capacity": 0}, "capacity=0")])
def test_bad_settings_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        machine(**options)
