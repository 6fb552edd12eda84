"""Persistent self-supervised learning: a trusted cue teaches a complementary one that can take over.

Idea: a sensor that is trusted (a stereo camera) labels every frame for one that must be learned (the look of one picture).
The learned cue may decide only when its decisions, not its errors, pass a test on frames of the current behaviour, and the
trusted cue steps in when a collision is near. So the learned cue sees the states that its own mistakes lead to, and carries
on when the trusted cue fails.

Paper: van Hecke, de Croon, van der Maaten, Hennes, Izzo, "Persistent self-supervised learning principle", arXiv 1603.08047.
The three strategies are the paper's: ``cold_turkey`` (the trusted cue decides until it is gone), ``dagger`` (the learned
cue decides after a first phase, nobody guards), ``training_wheels`` (as soon as the test is passed, with a guard).

Deviations: the numbers of the test, the window, the limit on overrides, the block split and the way back from GUARDED to
LEARN are this suite's; they were not checked against the paper. Frames to learn from are kept in a reservoir per bin of
the trusted value, so that memory stays bounded. A threshold is moved only where held-out frames hold both decisions.

Batch: one frame at a time: ``x`` (C, H, W) float, or whatever the learner describes; the trusted cue reads its own sensor.

Known limits: one scalar, one threshold. The trusted cue's errors are learned too. This is no `Adapter`: there are no
logits, gradients and source weights to go back to, and a decision needs two cues; it has an Adapter's calls and keeps
their promises, `predict` changing nothing and `reset` going back to the start. So adapt.py, which streams labelled
samples through a classifier, does not run it; ``scripts/persistent_room.py`` does.
"""

from __future__ import annotations

import math
import threading
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, get_args

import torch
from torch import Tensor

from ssl_suite.adapter import AdaptReport
from ssl_suite.batch import Tags
from ssl_suite.functional.handover import held_out, operating_point
from ssl_suite.io.checkpoints import AtomicCheckpointIO
from ssl_suite.nn.reservoir import BinnedReservoir

Strategy = Literal["cold_turkey", "dagger", "training_wheels"]
State = Literal["learn", "guarded", "solo"]
BINS, SCHEMA = 16, 1
COUNTERS = ("state", "passed", "cut", "seen", "frames")


class TrustedCue(Protocol):
    """What teaches. ``available`` is asked before every frame; `read` only where it is True."""

    available: bool

    def read(self) -> tuple[float, int]:
        """The value of this moment, and how many measurements (pixels) stand behind it."""


@dataclass(frozen=True)
class Decision:
    """Whether the value is above the threshold ("too close"), who says so, and the learned cue's estimate of the value."""

    close: bool
    by: Literal["trusted", "learned", "override", "nobody"]
    estimate: float


class PersistentSSL:
    """Two cues for one decision, ``value > threshold``, and the state machine LEARN, GUARDED, SOLO between them.

    LEARN: the trusted cue decides. GUARDED: the learned one does, the guard overrides. SOLO: the trusted cue is off and never
    read. Where neither may decide the answer is the safe one, too close. Calls are serialised by a lock.

    Args:
        trusted: the cue that teaches.
        learner: the cue that learns: ``width``, `describe`, `fit`, a call on descriptors, `state_dict`; see `TextonRegressor`.
        threshold: tau, in the units of the trusted value.
        strategy: who decides while both cues are there.
        tpr: true-positive rate at which the estimate's threshold is set.
        fpr_max: false-positive rate that is acceptable there.
        override: trusted value, as a multiple of the threshold, from which the guard overrides an estimate that says clear.
        overrides_max: rho, overrides in 100 frames that are acceptable.
        window: M, frames between two fits and tests; also the last frames whose overrides count.
        warmup: frames before the learned cue may decide.
        block: frames of a block; blocks are held out whole.
        hold_out: every so many-th block is held out.
        min_confident: measurements below which a reading is no label, and too close by itself.
        capacity: frames kept in each of 16 bins, a quarter of the threshold wide.
        seed: seed of what is kept.

    Raises:
        ValueError: a number out of range, or an unknown strategy.
    """

    tags = Tags("van Hecke et al., arXiv 1603.08047", "adaptation", modalities=("images",), views=(),
                script="scripts/persistent_room.py")

    def __init__(self, trusted: TrustedCue, *, learner: Any, threshold: float, strategy: Strategy = "training_wheels",
                 tpr: float = 0.9, fpr_max: float = 0.35, override: float = 1.25, overrides_max: float = 5.0,
                 window: int = 100, warmup: int = 400, block: int = 10, hold_out: int = 3, min_confident: int = 50,
                 capacity: int = 100, seed: int = 0) -> None:
        if strategy not in get_args(Strategy):
            raise ValueError(f"adapter.strategy={strategy!r} is not one of {', '.join(get_args(Strategy))}")
        if not (threshold > 0 and override >= 1 and 0 < tpr <= 1 and 0 <= fpr_max <= 1 and overrides_max >= 0):
            raise ValueError(f"adapter: threshold={threshold} must be above 0, override={override} at least 1, tpr={tpr} and "
                             f"fpr_max={fpr_max} shares, overrides_max={overrides_max} at least 0")
        if min(block, capacity) < 1 or hold_out < 2 or window < block * hold_out:
            raise ValueError(f"adapter.window={window} must hold one group of adapter.hold_out={hold_out} (at least 2) blocks of "
                             f"adapter.block={block} frames; adapter.capacity={capacity} is at least 1")
        self.trusted, self.learner, self.strategy, self.tpr, self.fpr_max = trusted, learner, strategy, tpr, fpr_max
        self.threshold, self.override, self.min_confident = threshold, override, min_confident
        self.window, self.warmup, self.block, self.hold_out = window, warmup, block, hold_out
        self.override_limit = overrides_max * window / 100
        self.memory = BinnedReservoir(learner.width, BINS, 4 * threshold / BINS, capacity, seed)
        self.lock = threading.RLock()
        self.reset()

    def reset(self) -> None:
        """Back to before the first frame; what the learner was calibrated with stays."""
        with self.lock:
            self.state: State = "learn"
            self.passed, self.cut, self.seen, self.frames = False, self.threshold, 0, 0
            self.fresh: list[tuple[Tensor, float]] = []  # since the last fit
            self.held: list[tuple[Tensor, float]] = []  # held out, of the current behaviour
            self.overrides: deque[bool] = deque(maxlen=self.window)
            self.memory.clear()
            self.learner.forget()

    def calibrate(self, x: Tensor) -> None:
        """Show the learner frames (N, ...), without labels, before the first one counts."""
        with self.lock:
            if self.seen:
                raise RuntimeError(f"calibrate() after {self.seen} frames would void what was learned; call reset() first")
            self.learner.calibrate(x)

    @property
    def permitted(self) -> bool:
        """Whether the learned cue may decide alone: it passed its last test and, with training wheels, needed few overrides."""
        few = len(self.overrides) == self.window and sum(self.overrides) <= self.override_limit
        return self.passed and (self.strategy != "training_wheels" or few)

    def estimate(self, x: Tensor) -> float:
        """The learned cue alone; NaN before the first fit. An estimate of at least ``cut`` means too close."""
        with self.lock:
            return float(self.learner(self.learner.describe(x, self.seen)[None]))

    def predict(self, x: Tensor) -> Decision:
        """What `predict_and_adapt` would decide now. Nothing is learned, no state changes."""
        with self.lock:
            return self._decide(self.estimate(x), self.trusted.read() if self.trusted.available else None)

    def adapt(self, x: Tensor) -> AdaptReport:
        """Learn from a frame; see `predict_and_adapt`."""
        return self.predict_and_adapt(x)[1]

    def predict_and_adapt(self, x: Tensor) -> tuple[Decision, AdaptReport]:
        """Decide, then store the frame with the trusted cue's label, and every ``window`` frames fit and test."""
        with self.lock:
            reading = self.trusted.read() if self.trusted.available else None
            h = self.learner.describe(x, self.seen)
            estimate = float(self.learner(h[None]))
            decision = self._decide(estimate, reading)
            self.state = self._next(reading is not None)
            self.seen += 1
            if reading is None:
                return decision, AdaptReport(0.0, 0, "skip", "the trusted cue is not available")
            return decision, self._learn(h, estimate, decision, *reading)

    def _next(self, available: bool) -> State:
        """The state once it is known whether the trusted cue is there."""
        if not available:
            return "solo" if self.permitted else self.state
        back: State = "learn" if self.strategy == "cold_turkey" else "guarded"
        return back if self.state == "solo" else self.state

    def _decide(self, estimate: float, reading: tuple[float, int] | None) -> Decision:
        close, state = not estimate < self.cut, self._next(reading is not None)
        if reading is None:
            return Decision(close, "learned", estimate) if state == "solo" else Decision(True, "nobody", estimate)
        value, confident = reading
        if state == "learn":
            return Decision(confident < self.min_confident or not value <= self.threshold, "trusted", estimate)
        if self.strategy == "training_wheels" and not close and value > self.override * self.threshold:
            return Decision(True, "override", estimate)
        return Decision(close, "learned", estimate)

    def _learn(self, h: Tensor, estimate: float, decision: Decision, value: float, confident: int) -> AdaptReport:
        usable = confident >= self.min_confident and math.isfinite(value) and bool(h.isfinite().all())
        if usable:
            (self.held if held_out(self.frames, self.block, self.hold_out) else self.fresh).append((h, value))
        self.frames += 1
        if self.state == "guarded":
            self.overrides.append(decision.by == "override")
            if sum(self.overrides) > self.override_limit:
                self._enter("learn")
        if self.frames % self.window == 0:
            self._fit()
        if not usable:
            return AdaptReport(0.0, 0, "skip", f"fewer than {self.min_confident} measurements, or a number that is not finite")
        return AdaptReport(abs(estimate - value), 1)

    def _enter(self, state: State) -> None:
        """Change who decides: held-out frames of the old behaviour become ordinary ones, and every count starts anew."""
        self.state, self.passed = state, self.passed and state == "guarded"
        self.fresh, self.held = self.fresh + self.held, []
        self.overrides.clear()

    def _fit(self) -> None:
        """Fit on all that is kept, test on the frames held out, and hand over or take back."""
        cut = max(len(self.held) - self.window, 0)
        for h, value in self.fresh + self.held[:cut]:
            self.memory.add(h, value)
        self.fresh, self.held = [], self.held[cut:]
        if not len(self.memory) or not self.held:
            return
        self.learner.fit(*self.memory.content())
        estimates = self.learner(torch.stack([h for h, _ in self.held]))
        point = operating_point(estimates, torch.tensor([value > self.threshold for _, value in self.held]), self.tpr)
        if point is not None:
            self.cut, self.passed = point.cut, point.fpr <= self.fpr_max
        if self.strategy == "cold_turkey" or self.frames < self.warmup:
            return
        if self.state == "learn" and (self.passed or self.strategy == "dagger"):
            self._enter("guarded")
        elif self.state == "guarded" and not self.passed and self.strategy == "training_wheels":
            self._enter("learn")
