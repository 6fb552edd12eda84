"""Persistent self-supervised learning: a trusted cue teaches a complementary one that can take over.

Idea: a trusted sensor (a stereo camera) labels every frame for a cue that must be learned (the look of one picture). That cue may
decide once its decisions, not its errors, pass a test, and the trusted one steps in where a collision is near: so it sees the
states that its own mistakes lead to, and carries on when the trusted cue fails.

Paper: van Hecke, de Croon, van der Maaten, Hennes, Izzo, arXiv 1603.08047. Strategies: ``cold_turkey`` (the trusted cue decides
until it is gone), ``dagger`` (then the learned one, unguarded), ``training_wheels`` (guarded, and once the test is passed).

Deviations: figures of the test, window, limit on overrides and way back to LEARN are this suite's, not checked against the paper.
A reservoir in each bin of the trusted value bounds memory. No blocks are held out: a frame is tested by the estimate made when it
came, before its window was learned, since blocks between learned ones flatter where a robot comes back.

Batch: one frame at a time, ``x`` (C, H, W) float, or whatever the learner describes; the trusted cue reads its own sensor.

Known limits: errors of the trusted cue are learned too. No `Adapter`, for there are no logits, gradients and source weights, and a
decision needs two cues; calls and promises are an Adapter's all the same. A script of its own runs it.
"""

from __future__ import annotations

import copy
import math
from collections import deque
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol, get_args

from torch import Tensor

from ssl_suite.adapter import AdaptReport
from ssl_suite.batch import Tags
from ssl_suite.functional.handover import OperatingPoint, operating_point
from ssl_suite.io.checkpoints import AtomicCheckpointIO
from ssl_suite.nn.frames import FrameStore

Strategy = Literal["cold_turkey", "dagger", "training_wheels"]
State = Literal["learn", "guarded", "solo"]


class TrustedCue(Protocol):
    """What teaches. ``available`` is asked at every frame; `read` gives a value and how many pixels stand behind it."""
    available: bool
    def read(self) -> tuple[float, int]: ...


class Decision(NamedTuple):
    """Whether it is too close, who says so, and the learned cue's estimate of the value (NaN before the first fit)."""
    close: bool
    by: Literal["trusted", "learned", "override", "nobody"]
    estimate: float


class PersistentSSL:
    """Two cues for one decision, ``value > threshold`` ("too close"), and the states LEARN, GUARDED and SOLO between them.

    LEARN: the trusted cue decides. GUARDED: the learned one, unless the guard overrides. SOLO: the trusted cue is not available and
    never read. Where neither may decide, the answer is the safe one, too close. Made for one control loop, not for threads.

    Args:
        trusted: the cue that teaches.
        learner: the cue that learns, such as `ssl_suite.nn.textons.TextonRegressor`.
        threshold: tau, in the units of the trusted value.
        strategy: who decides while both cues are there.
        tpr: true-positive rate for which the threshold on the estimate, ``cut``, is set at every test.
        fpr_max: false-positive rate that is acceptable there.
        override: multiple of the threshold above which the guard overrides an estimate that says clear.
        overrides_max: rho, overrides in 100 frames that are acceptable.
        window: M, frames between two tests and fits, and frames over which overrides count.
        tested: newest frames that a test rests on, whoever decided; no verdict with fewer than ten of a kind.
        warmup: frames before the learned cue may decide while the trusted one is there.
        min_confident: pixels below which a reading is no label, and too close by itself.
        capacity: frames kept in each of 16 bins of the trusted value, a quarter of the threshold wide.

    Raises:
        ValueError: a number out of range, or an unknown strategy.
    """

    tags = Tags("van Hecke et al., arXiv 1603.08047", "adaptation", ("images",), views=(), script="scripts/persistent_room.py")

    def __init__(self, trusted: TrustedCue, *, learner: Any, threshold: float, strategy: Strategy = "training_wheels",
                 tpr: float = 0.9, fpr_max: float = 0.6, override: float = 1.25, overrides_max: float = 5.0, window: int = 100,
                 tested: int = 300, warmup: int = 400, min_confident: int = 50, capacity: int = 100) -> None:
        self.settings = {k: v for k, v in locals().items() if k not in ("self", "trusted", "learner")}
        if strategy not in get_args(Strategy):
            raise ValueError(f"adapter.strategy={strategy!r} is not one of {', '.join(get_args(Strategy))}")
        if not (threshold > 0 and override >= 1 and 0 < tpr <= 1 and 0 <= fpr_max <= 1 and min(window, tested) >= 1):
            raise ValueError(f"adapter.threshold={threshold} must be above 0, override={override} at least 1, tpr={tpr} and "
                             f"fpr_max={fpr_max} shares, window={window} and tested={tested} at least 1")
        self.trusted, self.learner, self.strategy, self.tpr, self.fpr_max = trusted, learner, strategy, tpr, fpr_max
        self.threshold, self.override, self.override_limit = threshold, override, overrides_max * window / 100
        self.window, self.tested, self.warmup, self.min_confident = window, tested, warmup, min_confident
        self.store = FrameStore(learner.width, threshold / 4, capacity=capacity)
        self.reset()

    def reset(self) -> None:
        """Back to before the first frame; what the learner was calibrated with stays."""
        self.state: State = "learn"
        self.point: OperatingPoint | None = None  # of the last test
        self.passed, self.cut, self.seen, self.frames = False, self.threshold, 0, 0
        self.overrides, self.pairs = deque[bool](maxlen=self.window), deque[tuple[float, float]](maxlen=self.tested)
        self.store.clear()
        self.learner.forget()

    @property
    def permitted(self) -> bool:
        """Whether the learned cue may decide alone: it passed its last test and, with training wheels, needed few overrides."""
        few = len(self.overrides) == self.window and sum(self.overrides) <= self.override_limit
        return self.passed and (self.strategy != "training_wheels" or few)

    def predict(self, x: Tensor) -> Decision:
        """What `predict_and_adapt` would decide now. No change of state."""
        return self._decide(self.learner.describe(x, self.seen), self.trusted.read() if self.trusted.available else None)

    def adapt(self, x: Tensor) -> AdaptReport:
        """Learn from a frame; see `predict_and_adapt`."""
        return self.predict_and_adapt(x)[1]

    def predict_and_adapt(self, x: Tensor) -> tuple[Decision, AdaptReport]:
        """Decide, then keep the frame with the trusted cue's label, and at the end of a window test and fit."""
        h, reading = self.learner.describe(x, self.seen), self.trusted.read() if self.trusted.available else None
        decision = self._decide(h, reading)
        self.state, self.seen = self._next(reading is not None), self.seen + 1
        if reading is None:
            return decision, AdaptReport(0.0, 0, "skip", "the trusted cue is not available")
        return decision, self._learn(h, decision, *reading)

    def _next(self, available: bool) -> State:
        """The state once it is known whether the trusted cue is there."""
        if not available:
            return "solo" if self.permitted else self.state
        return ("learn" if self.strategy == "cold_turkey" else "guarded") if self.state == "solo" else self.state

    def _decide(self, h: Tensor, reading: tuple[float, int] | None) -> Decision:
        estimate, state = float(self.learner(h[None])), self._next(reading is not None)
        close = not estimate < self.cut
        if reading is None:
            return Decision(close, "learned", estimate) if state == "solo" else Decision(True, "nobody", estimate)
        value, confident = reading
        if state == "learn":
            return Decision(confident < self.min_confident or not value <= self.threshold, "trusted", estimate)
        guarded = self.strategy == "training_wheels" and value > self.override * self.threshold
        return Decision(True, "override", estimate) if guarded and not close else Decision(close, "learned", estimate)

    def _learn(self, h: Tensor, decision: Decision, value: float, confident: int) -> AdaptReport:
        usable = confident >= self.min_confident and math.isfinite(value) and bool(h.isfinite().all())
        if usable:
            self.store.add(h, value)
            if math.isfinite(decision.estimate):
                self.pairs.append((decision.estimate, value))
        self.frames += 1
        if self.state == "guarded":
            self.overrides.append(decision.by == "override")
            if sum(self.overrides) > self.override_limit:
                self._enter("learn")
        if self.frames % self.window == 0:
            self._test_and_fit()
        if not usable:
            return AdaptReport(0.0, 0, "skip", f"fewer than {self.min_confident} confident pixels, or a number that is not finite")
        return AdaptReport(abs(decision.estimate - value), 1)

    def _enter(self, state: State) -> None:
        """Change who decides; overrides are counted anew."""
        self.state, self.passed = state, self.passed and state == "guarded"
        self.overrides.clear()

    def _test_and_fit(self) -> None:
        estimate, value = self.store.value.new_tensor(list(self.pairs)).reshape(-1, 2).unbind(1)
        self.store.settle()
        self.learner.fit(*self.store.to_learn())
        if (point := operating_point(estimate, value > self.threshold, self.tpr)) is not None:
            self.point, self.cut, self.passed = point, point.cut, point.fpr <= self.fpr_max
        may = {"cold_turkey": False, "dagger": True, "training_wheels": self.passed}[self.strategy]
        state: State = "guarded" if may else "learn"
        if state != self.state and (state == "learn" or self.frames >= self.warmup):
            self._enter(state)

    def state_dict(self) -> dict[str, Any]:
        """All that was learned and counted: plain containers and tensors."""
        numbers = (self.state, self.passed, self.cut, self.seen, self.frames, self.point and tuple(self.point))
        return copy.deepcopy({"settings": self.settings, "numbers": numbers, "overrides": list(self.overrides),
                              "pairs": list(self.pairs), "store": self.store.state_dict(), "learner": self.learner.state_dict()})

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over a state; raises ValueError where it belongs to other settings."""
        for name in [n for n, own in self.settings.items() if state["settings"][n] != own]:
            raise ValueError(f"adapter.{name}={self.settings[name]}, but the state was made with {state['settings'][name]}")
        self.learner.load_state_dict(state["learner"])
        self.store.load_state_dict(state["store"])
        self.overrides, self.pairs = deque(state["overrides"], self.window), deque(state["pairs"], self.tested)
        self.state, self.passed, self.cut, self.seen, self.frames, point = state["numbers"]
        self.point = point and OperatingPoint(*point)
        self.learner.fit(*self.store.to_learn())

    def save(self, path: str | Path) -> None:
        """Write `state_dict` to a file: whole or not at all."""
        AtomicCheckpointIO().save_checkpoint(self.state_dict(), path)

    def load(self, path: str | Path) -> None:
        """Read a file of `save`."""
        self.load_state_dict(AtomicCheckpointIO().load_checkpoint(path))
