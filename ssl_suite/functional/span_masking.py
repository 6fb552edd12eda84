"""Masks made of spans of frames or channels, and crops, drawn per sample. ``mask`` True = hidden.

The rules are those of wav2vec 2.0 (arXiv 2006.11477, section 3.1 and fairseq's ``compute_mask_indices``), written for
whole batches on the device with one stream of random numbers per sample: its spans do not depend on its batch.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ssl_suite.functional.random import Draw


def most_masked(n: int, probability: float, span: int, min_spans: int = 2) -> int:
    """Frames that `span_mask` hides at most in a row of ``n`` frames: the shape of what is gathered from a mask."""
    return min(span * _most_spans(n, probability, span, min_spans), n - 1)


def _most_spans(n: int, probability: float, span: int, min_spans: int) -> int:
    return max(min_spans, int(probability * n / span) + 1)


def span_mask(draw: Draw, valid: Tensor, probability: float, span: int, min_spans: int = 2) -> Tensor:
    """Hide spans of equal length within the valid frames of each row; spans may overlap.

    A row of n valid frames gets int(p n / span + u) spans, u uniform in [0, 1), at distinct random starts. Since spans
    overlap, about 1 - exp(-p) of the frames are hidden. Spans are shortened in rows that ``min_spans`` of them could
    hide whole, one random frame is shown again in a row that is hidden whole all the same, and rows of fewer than 3
    frames stay as they are.

    Args:
        draw: one stream per row.
        valid: frames that exist, (B, N) bool, the first of each row.
        probability: share of hidden frames if spans never overlapped.
        span: frames of a span; at least 1.
        min_spans: spans of a row at least.

    Returns:
        Mask, (B, N) bool.

    Raises:
        ValueError: the probability is negative or the span is empty.
    """
    if probability < 0.0 or span < 1:
        raise ValueError(f"a span mask needs mask_prob >= 0 and mask_length >= 1, got {probability} and {span}")
    frames = valid.shape[1]
    n = valid.sum(dim=1, keepdim=True)
    size = ((n - 1) // max(min_spans, 1)).clamp(1, span)
    count = (probability * n / span + draw.uniform(1)).long()
    count = count.clamp(min_spans, _most_spans(frames, probability, span, min_spans))
    at = torch.arange(frames, device=valid.device)
    rank = (draw.uniform(frames) + 2.0 * (at > n - size)).argsort(dim=1).argsort(dim=1)
    starts = (rank < count) & (at <= n - size) & (n >= 3)
    begun = starts.cumsum(dim=1)
    over = begun.gather(1, (at - size).clamp_min(0)) * (at >= size)
    mask = begun > over
    spared = (draw.uniform(frames) - 2.0 * valid).argmin(dim=1, keepdim=True)
    whole = mask.sum(dim=1, keepdim=True) == n
    return mask & ~(whole & (at == spared))


def cut_to_smallest(draw: Draw, mask: Tensor, smallest: Tensor) -> Tensor:
    """Show random hidden frames again until each row hides ``smallest`` of them; rows that hide fewer stay as they are.

    Args:
        draw: one stream per row; which frames go first does not depend on how many go.
        mask: (B, N) bool.
        smallest: hidden frames to keep in each row, a scalar on the mask's device.

    Returns:
        Mask, (B, N) bool.
    """
    rank = (draw.uniform(mask.shape[1]) + 2.0 * ~mask).argsort(dim=1).argsort(dim=1)
    return mask & (rank < smallest)


def crop(x: Tensor, length: Tensor | None, draw: Draw, size: int) -> tuple[Tensor, Tensor | None]:
    """A random piece of at most ``size`` samples of each waveform (B, T), and the valid samples of each piece (B,)."""
    if x.shape[1] <= size:
        return x, length
    n = torch.full_like(x[:, 0], x.shape[1], dtype=torch.int64) if length is None else length
    start = draw.integers(2**62, 1) % (n[:, None] - size + 1).clamp_min(1)
    return x.gather(1, start + torch.arange(size, device=x.device)), None if length is None else length.clamp_max(size)
