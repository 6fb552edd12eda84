"""Connectionist temporal classification (Graves et al., ICML 2006): loss, greedy decoding, pooled error counts.

Class 0 is the blank; symbol s of the vocabulary is class s + 1.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

BOUNDARIES = (" ", "|")
"""Symbols that separate words."""


def ctc_loss(logits: Tensor, length: Tensor, y: Tensor, y_length: Tensor) -> Tensor:
    """Negative log-likelihood of the transcripts, summed and divided by the number of sentences, in float32.

    A transcript that does not fit its frames has no likelihood and adds neither loss nor gradient; see `too_short`.

    Args:
        logits: (B, N, V + 1), class 0 the blank.
        length: valid frames, (B,).
        y: symbols (B, L), padded with -1.
        y_length: symbols of each row, (B,).
    """
    log_probs = logits.float().log_softmax(dim=-1).transpose(0, 1)
    targets = (y + 1).clamp_min(0)
    return F.ctc_loss(log_probs, targets, length, y_length, reduction="sum", zero_infinity=True) / len(y)


def too_short(length: Tensor, y: Tensor, y_length: Tensor) -> Tensor:
    """Rows whose frames cannot hold their transcript, (B,) bool: it needs L frames and a blank per repetition."""
    inside = torch.arange(1, y.shape[1], device=y.device) < y_length[:, None]
    repeats = ((y[:, 1:] == y[:, :-1]) & inside).sum(dim=1)
    return length < y_length + repeats


def greedy_decode(logits: Tensor, length: Tensor) -> list[list[int]]:
    """The best class of every frame, repetitions merged, blanks dropped.

    Args:
        logits: (B, N, V + 1), class 0 the blank.
        length: valid frames, (B,).

    Returns:
        Symbols of each row.
    """
    best = logits.argmax(dim=-1)
    first = torch.ones_like(best, dtype=torch.bool)
    first[:, 1:] = best[:, 1:] != best[:, :-1]
    kept = first & (best != 0) & (torch.arange(best.shape[1], device=best.device) < length[:, None])
    return [row[keep].tolist() for row, keep in zip((best - 1).cpu(), kept.cpu(), strict=True)]


def blank_past_end(logits: Tensor, length: Tensor) -> Tensor:
    """Scores whose frames past the end of a row say blank for certain, so that they decode without their lengths.

    Args:
        logits: (B, N, V + 1), class 0 the blank.
        length: valid frames, (B,).
    """
    blank = logits.new_full((logits.shape[2],), -1e4).index_fill(0, torch.zeros(1, dtype=torch.int64, device=logits.device), 0.0)
    past = torch.arange(logits.shape[1], device=logits.device) >= length[:, None]
    return torch.where(past[:, :, None], blank, logits)


def words(symbols: Sequence[int], vocabulary: Sequence[str]) -> list[str]:
    """Symbols joined to words at the word boundaries of the vocabulary."""
    text = "".join(" " if vocabulary[s] in BOUNDARIES else vocabulary[s] for s in symbols)
    return text.split()


def errors(references: Sequence[Sequence[int | str]], hypotheses: Sequence[Sequence[int | str]]) -> tuple[int, int]:
    """Insertions, deletions and substitutions over all pairs, and the number of reference symbols.

    An error rate is the first over the second, pooled over the corpus, never a mean of the sentences' rates.
    """
    from torchaudio.functional import edit_distance

    wrong = sum(edit_distance(r, h) for r, h in zip(references, hypotheses, strict=True))
    return wrong, sum(len(r) for r in references)
