"""Views of several sizes through one network."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import groupby

import torch
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
