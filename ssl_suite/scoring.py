"""Mistakes of a deployed model, sample by sample: a wrong class, or the edits that its transcript needs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ssl_suite.batch import Batch
from ssl_suite.functional.ctc import BOUNDARIES, errors, greedy_decode, words


def mistakes(logits: Tensor, batch: Batch, classes: np.ndarray | None = None) -> list[int]:
    """What is wrong in each sample; an error rate is its sum over that of `wanted`.

    Args:
        logits: (B, K): 1 where the largest is not that of the class. (B, N, V): insertions, deletions and substitutions
            of symbols after greedy decoding, class 0 being the blank.
        batch: with ``y``, and ``y_length`` for transcripts.
        classes: the only classes that may be predicted; None allows all.
    """
    if "y_length" not in batch:
        logits = logits.detach().cpu()
        best = logits.argmax(1) if classes is None else torch.from_numpy(classes)[logits[:, classes].argmax(1)]
        return (best != batch["y"].cpu()).int().tolist()
    return [errors([right], [heard])[0] for right, heard in zip(references(batch), transcripts(logits), strict=True)]


def wanted(batch: Batch) -> list[int]:
    """How much there is to get right in each sample: one class, or the symbols of its transcript."""
    return batch["y_length"].tolist() if "y_length" in batch else [1] * len(batch["y"])


def word_mistakes(source: Tensor, adapted: Tensor, batch: Batch, vocabulary: Sequence[str]) -> list[tuple[int, int, int]]:
    """Words of each transcript, and those that either model has wrong; nothing where the vocabulary separates no words.

    Args:
        source: logits (B, N, V) of one model.
        adapted: logits (B, N, V) of the other.
        batch: with ``y`` and ``y_length``.
        vocabulary: symbols, without the blank.
    """
    if not set(BOUNDARIES) & set(vocabulary):
        return []
    right, *heard = ([words(row, vocabulary) for row in rows]
                     for rows in (references(batch), transcripts(source), transcripts(adapted)))
    return [(len(r), errors([r], [s])[0], errors([r], [a])[0]) for r, s, a in zip(right, *heard, strict=True)]


def references(batch: Batch) -> list[list[int]]:
    """Symbols of the transcripts, without padding."""
    return [row[:n] for row, n in zip(batch["y"].tolist(), batch["y_length"].tolist(), strict=True)]


def transcripts(logits: Tensor) -> list[list[int]]:
    """Greedy decoding of frames (B, N, V) whose padding says blank."""
    return greedy_decode(logits, torch.full((len(logits),), logits.shape[1], device=logits.device))
