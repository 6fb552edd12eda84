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


class Infinite:
    """Warm up once, cool down to a plateau, stay there for as long as data come, and anneal for a model to use.

    Singh et al., "Beyond Cosine Decay", CoLLAs 2025, arXiv 2503.02844. The defaults are those of the official small-scale code. The
    next data set there goes on from the weights at the end of the plateau and begins on it: ``first`` False. A model is
    judged after it was annealed. Unlike in the paper the first step learns: warm-up is (n + 1) / (N + 1) and not n / N.

    Args:
        warmup: share of the run by which the base rate is reached, along a line.
        cooldown: share by which half a cosine has led down to the plateau.
        plateau: share at which annealing begins.
        constant: factor of the plateau, in (0, 1].
        final: factor at the end of the exponential annealing, in (0, constant].
        first: False leaves out warm-up and cool-down.

    Raises:
        ValueError: shares or factors are out of order.
    """

    def __init__(self, warmup: float = 0.05, cooldown: float = 0.3, plateau: float = 0.8, constant: float = 0.25,
                 final: float = 0.01, first: bool = True) -> None:
        if not 0.0 <= warmup <= cooldown <= plateau <= 1.0:
            raise ValueError(f"schedule.warmup={warmup}, cooldown={cooldown} and plateau={plateau} must rise within [0, 1]")
        if not 0.0 < final <= constant <= 1.0:
            raise ValueError(f"schedule.final={final} must be above 0 and at most schedule.constant={constant}, which is at most 1")
        self.warmup, self.cooldown, self.plateau = warmup, cooldown, plateau
        self.constant, self.final, self.first = constant, final, first

    def __call__(self, step: int, total: int) -> float:
        rise, low, anneal = (share * total for share in (self.warmup, self.cooldown, self.plateau))
        if step >= anneal:
            return self.constant * (self.final / self.constant) ** min(1.0, (step - anneal) / max(1.0, total - anneal))
        if not self.first or step >= low:
            return self.constant
        if step < rise:
            return (step + 1) / (rise + 1)
        return self.constant + (1.0 - self.constant) * (1.0 + math.cos(math.pi * (step - rise) / (low - rise))) / 2.0


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
