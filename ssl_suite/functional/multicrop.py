"""Views of several sizes through one network, and what they tell each other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import groupby

import torch
import torch.nn.functional as F
from torch import Tensor


def encode_together(network: Callable[..., Tensor], views: Sequence[Tensor], length: Tensor | None = None) -> list[Tensor]:
    """Representations of views, neighbours of one shape in one pass, so that BatchNorm sees them together (as SwAV does).

    Args:
        network: from samples and their lengths to (B, D).
        views: views of one batch, (B, ...) each.
        length: valid time steps of the samples, (B,), or None.

    Returns:
        One tensor (B, D) per view.
    """
    out: list[Tensor] = []
    for _, group in groupby(views, key=lambda x: x.shape):
        alike = list(group)
        out += network(torch.cat(alike), None if length is None else length.repeat(len(alike))).chunk(len(alike))
    return out


def swapped_prediction(scores: Sequence[Tensor], targets: Sequence[Tensor], temperature: float) -> Tensor:
    """Cross-entropy of each view's prediction with the target of each other view, averaged over such pairs.

    Equation 2 of SwAV (arXiv 2006.09882) and equation 3 of DINO (arXiv 2104.14294).

    Args:
        scores: similarity of each view to the prototypes, (B, K) each; the views with targets come first.
        targets: rows that sum to 1, (B, K) each, without gradient.
        temperature: of the predictions; above 0.

    Returns:
        Scalar.
    """
    predicted = [F.log_softmax(s / temperature, dim=1) for s in scores]
    return torch.stack([-(target * log_p).sum(1).mean() for i, target in enumerate(targets)
                        for v, log_p in enumerate(predicted) if v != i]).mean()
