"""Losses of test-time adaptation: functions of logits alone."""

from __future__ import annotations

from torch import Tensor


def entropy(logits: Tensor) -> Tensor:
    """Entropy of the softmax of every row, in nats: TENT, arXiv 2006.10726, section 3.1.

    Finite, with a finite gradient, however sure a row is.

    Args:
        logits: (B, K).

    Returns:
        Entropies, (B,), between 0 and ln K; the gradient flows through the probabilities and their logarithms.
    """
    return -(logits.softmax(dim=1) * logits.log_softmax(dim=1)).sum(dim=1)
