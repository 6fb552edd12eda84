"""Learning-rate schedules: a factor on the base rate as a function of (step, total steps)."""

from __future__ import annotations

import math
from typing import Protocol


class Schedule(Protocol):
    """Factor on the learning rate at a step counted from 0."""

    def __call__(self, step: int, total: int) -> float: ...


class Constant:
    """The base rate throughout."""

    def __call__(self, step: int, total: int) -> float:
        return 1.0


class Cosine:
    """Linear warm-up, then half a cosine down to ``final``.

    Args:
        warmup: share of the run spent warming up, in [0, 1).
        final: factor at the end.
    """

    def __init__(self, warmup: float = 0.1, final: float = 0.0) -> None:
        self.warmup, self.final = warmup, final

    def __call__(self, step: int, total: int) -> float:
        rise = max(1, round(self.warmup * total)) if self.warmup else 0
        if step < rise:
            return (step + 1) / rise
        progress = min(1.0, (step - rise) / max(1, total - rise))
        return self.final + (1.0 - self.final) * (1.0 + math.cos(math.pi * progress)) / 2.0


class Frozen:
    """Nothing is learnt at first, then another schedule goes on as if it had always run (prototypes of SwAV).

    Args:
        then: schedule afterwards.
        share: share of the run without learning, in [0, 1).
    """

    def __init__(self, then: Schedule, share: float) -> None:
        self.then, self.share = then, share

    def __call__(self, step: int, total: int) -> float:
        return 0.0 if step < self.share * total else self.then(step, total)


class FixMatchCosine:
    """cos(7 pi k / 16 K): a cosine that ends at about a fifth of the base rate (FixMatch, arXiv 2001.07685, section 2.4)."""

    def __call__(self, step: int, total: int) -> float:
        return math.cos(7.0 * math.pi * min(step, total) / (16.0 * max(total, 1)))


class TriStage:
    """Linear warm-up, hold, exponential decay (fine-tuning of wav2vec 2.0; fairseq's ``tri_stage``).

    Args:
        warmup: share of the run that warms up.
        hold: share of the run at the base rate.
        initial: factor at the start.
        final: factor at the end.
    """

    def __init__(self, warmup: float = 0.1, hold: float = 0.4, initial: float = 0.01, final: float = 0.05) -> None:
        self.warmup, self.hold, self.initial, self.final = warmup, hold, initial, final

    def __call__(self, step: int, total: int) -> float:
        rise, flat = self.warmup * total, self.hold * total
        if step < rise:
            return self.initial + (1.0 - self.initial) * step / rise
        if step < rise + flat:
            return 1.0
        progress = min(1.0, (step - rise - flat) / max(1.0, total - rise - flat))
        return math.exp(math.log(self.final) * progress)
