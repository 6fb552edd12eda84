"""Arithmetic of learning from a model's own labels."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def consistency_loss(logits: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """Weighted cross-entropy, divided by the number of all samples and not of the kept ones (FixMatch, equation 4).

    Args:
        logits: predictions that are to learn, (M, K).
        target: pseudo-labels, (M,) int64, or distributions over classes, (M, K).
        weight: weight of each sample, (M,); 0 drops it.

    Returns:
        Scalar; gradient flows into ``logits`` only as long as target and weight are detached.
    """
    return (F.cross_entropy(logits, target, reduction="none") * weight).mean()


def probability_mse(logits: Tensor, target: Tensor) -> Tensor:
    """Squared difference of two softmaxes, averaged over rows and classes (Mean Teacher, arXiv 1703.01780).

    Args:
        logits: predictions, (M, K).
        target: predictions to compare with, (M, K); detach what is not to learn.

    Returns:
        Scalar.
    """
    return F.mse_loss(logits.float().softmax(1), target.float().softmax(1))


def sharpen(probs: Tensor, temperature: float) -> Tensor:
    """softmax(logits / temperature), from probabilities: p^(1/T), made to sum to 1 (MixMatch, arXiv 1905.02249, equation 7).

    Args:
        probs: rows (M, K) that sum to 1.
        temperature: above 0; below 1 sharpens, above 1 flattens.
    """
    return (probs.log() / temperature).softmax(1)


def sigmoid_ramp(progress: float, end: float) -> float:
    """exp(-5 (1 - t)^2) with t rising from 0 to 1 at ``end`` (Laine and Aila, arXiv 1610.02242).

    Args:
        progress: share of the run that is done, in [0, 1].
        end: share at which the ramp has arrived; 0 for no ramp.
    """
    return math.exp(-5.0 * (1.0 - progress / end) ** 2) if progress < end else 1.0


def linear_ramp(progress: float, start: float, end: float) -> float:
    """0 until ``start``, then a straight line to 1 at ``end`` (Lee 2013, equation 16, with its height taken out).

    Args:
        progress: share of the run that is done, in [0, 1].
        start: share at which the ramp begins.
        end: share at which it has arrived; equal to ``start`` for a jump.
    """
    if progress < start:
        return 0.0
    return 1.0 if progress >= end else (progress - start) / (end - start)


def concat_rows(xs: Sequence[Tensor], lengths: Sequence[Tensor | None]) -> tuple[Tensor, Tensor | None]:
    """Several batches as one, rows padded with zeros at the end of the last axis to the longest.

    Args:
        xs: batches (B_i, ..., T_i).
        lengths: valid time steps of each batch's rows, (B_i,), or None where all are valid.

    Returns:
        Rows (sum B_i, ..., T) and their lengths (sum B_i,); None when no batch has lengths and all have the same T.
    """
    longest = max(x.shape[-1] for x in xs)
    if all(length is None for length in lengths) and all(x.shape[-1] == longest for x in xs):
        return torch.cat(list(xs)), None
    rows = [F.pad(x, (0, longest - x.shape[-1])) for x in xs]
    valid = [x.new_full((len(x),), x.shape[-1], dtype=torch.int64) if length is None else length
             for x, length in zip(xs, lengths, strict=True)]
    return torch.cat(rows), torch.cat(valid)
