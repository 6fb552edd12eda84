"""Quarter turns of pictures, whole or of a part."""

from __future__ import annotations

import torch
from torch import Tensor


def rotate(x: Tensor, turns: Tensor) -> Tensor:
    """Turn pictures (B, C, S, S) by quarters counter-clockwise, ``turns`` (B,) in 0..3."""
    if x.ndim != 4 or x.shape[2] != x.shape[3]:
        raise ValueError(f"the rotation task needs square pictures (B, C, S, S), got {tuple(x.shape)}; "
                         "use model=ttt_series or model=ttt_mae for other data")
    turned = torch.stack([torch.rot90(x, k, (2, 3)) for k in range(4)])
    return turned[turns, torch.arange(len(x), device=x.device)]


def rotate_patch(x: Tensor, top: Tensor, left: Tensor, side: Tensor, turns: Tensor) -> Tensor:
    """Turn one square of each picture by quarters counter-clockwise and leave the rest: a single gather, no loop over rows.

    Args:
        x: pictures, (B, C, H, W).
        top: first row of the square, (B,) int64.
        left: its first column, (B,) int64.
        side: its side in pixels, (B,) int64; the square must lie within the picture.
        turns: quarters, (B,) in 0..3.

    Returns:
        Pictures like ``x``.
    """
    height, width = x.shape[2:]
    top, left, side, turns = (t.view(-1, 1, 1) for t in (top, left, side, turns))
    row = torch.arange(height, device=x.device).view(1, -1, 1)
    column = torch.arange(width, device=x.device).view(1, 1, -1)
    u, v, end = row - top, column - left, side - 1
    from_row = top + torch.where(turns == 1, v, torch.where(turns == 2, end - u, torch.where(turns == 3, end - v, u)))
    from_column = left + torch.where(turns == 1, end - u, torch.where(turns == 2, end - v, torch.where(turns == 3, u, v)))
    inside = (u >= 0) & (u < side) & (v >= 0) & (v < side)
    source = torch.where(inside, from_row * width + from_column, row * width + column)
    return x.flatten(2).gather(2, source.flatten(1)[:, None].expand(-1, x.shape[1], -1)).view_as(x)
