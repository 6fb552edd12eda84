"""When may a learned cue decide? The test of arXiv 1603.08047: judge its decisions, not its errors."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from sklearn.metrics import roc_curve
from torch import Tensor


class OperatingPoint(NamedTuple):
    """A threshold on an estimate, and the rates that it has on the frames it was chosen on."""

    cut: float
    tpr: float
    fpr: float


def operating_point(estimate: Tensor, positive: Tensor, tpr: float, fewest: int = 10) -> OperatingPoint | None:
    """The highest threshold whose true-positive rate reaches ``tpr``.

    Args:
        estimate: (N,); an estimate at or above the threshold counts as a detection.
        positive: what is to be detected, (N,) bool.
        tpr: in (0, 1].
        fewest: frames needed of each of the two kinds, at least 1.

    Returns:
        Threshold, true- and false-positive rate; None where a rate means nothing: too few frames of a kind, or an estimate is
        not finite.
    """
    count = int(positive.sum())
    if min(count, len(positive) - count) < fewest or not estimate.isfinite().all():
        return None
    fpr, rate, cuts = roc_curve(positive.numpy(), estimate.double().numpy(), drop_intermediate=False)
    first = int(np.argmax(rate >= tpr))
    return OperatingPoint(float(cuts[first]), float(rate[first]), float(fpr[first]))
