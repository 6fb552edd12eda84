"""Depth from two pictures: block matching along the rows of a rectified pair."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def block_matching(left: Tensor, right: Tensor, max_disparity: int, *, window: int = 7, uniqueness: float = 0.15,
                   texture: float = 0.02) -> tuple[Tensor, Tensor]:
    """Disparity of the left picture by the smallest mean absolute difference of square blocks.

    Winner takes all over 0 to ``max_disparity`` pixels, then a parabola through the neighbouring costs for the part of a
    pixel. A match is confident where the block has contrast along the row, no disparity but the neighbours of the best
    one costs nearly as little, the right picture's own best match leads back to within one pixel, and the whole block
    lies inside both pictures. These are the usual tests of block matchers; no single paper is followed.

    Args:
        left: (C, H, W), float; left[:, y, x] shows what right[:, y, x - disparity] shows.
        right: (C, H, W).
        max_disparity: largest disparity tried, in pixels, at least 1 and below W.
        window: side of a block in pixels, odd.
        uniqueness: share by which the runner-up must cost more than the best match, at least 0.
        texture: mean absolute difference of neighbours in a row that a block must have, in the units of the pictures;
            for pictures in [0, 1] choose it above the noise.

    Returns:
        Disparities (H, W) in pixels, and whether each is to be trusted, (H, W) bool.

    Raises:
        ValueError: pictures of unlike or wrong shape, or a number out of range.
    """
    if left.shape != right.shape or left.ndim != 3:
        raise ValueError(f"left {tuple(left.shape)} and right {tuple(right.shape)} must both be (C, H, W) of one size")
    height, width = left.shape[1:]
    if not 1 <= max_disparity < width:
        raise ValueError(f"max_disparity={max_disparity} must be at least 1 and below the width, {width}")
    if window % 2 == 0 or not 1 <= window <= min(height, width):
        raise ValueError(f"window={window} must be odd and fit the picture of {height} x {width}; 7 is usual")
    if uniqueness < 0 or texture < 0:
        raise ValueError(f"uniqueness={uniqueness} and texture={texture} must not be negative")
    cost = block_costs(left, right, max_disparity, window)
    best, disparity = cost.min(dim=0)
    rival = cost.clone()
    for offset in (-1, 0, 1):
        rival.scatter_(0, (disparity + offset).clamp(0, max_disparity)[None], float("inf"))
    column = torch.arange(width, device=left.device).expand(height, width)
    back = right_disparity(cost).gather(1, (column - disparity).clamp(min=0))
    contrast = box(F.pad((left[..., 1:] - left[..., :-1]).abs().mean(0), (0, 1))[None], window)[0]
    margin, row = window // 2, torch.arange(height, device=left.device)[:, None]
    inside = (column - disparity >= margin) & (column < width - margin) & (row >= margin) & (row < height - margin)
    confident = (contrast >= texture) & (rival.min(dim=0).values > best * (1.0 + uniqueness)) & inside
    return disparity + fraction(cost, disparity), confident & ((back - disparity).abs() <= 1)


def block_costs(left: Tensor, right: Tensor, max_disparity: int, window: int) -> Tensor:
    """Mean absolute difference of blocks at every disparity, (max_disparity + 1, H, W); infinite outside the right picture."""
    width = left.shape[-1]
    partners = F.pad(right, (max_disparity, 0)).unfold(-1, width, 1).flip(2)  # (C, H, disparity, W)
    there = left.new_ones(max_disparity + 1, width).triu()[:, None]  # the partner lies inside the right picture
    difference = (left[:, :, None] - partners).abs().mean(0).transpose(0, 1) * there
    return torch.where(there > 0, box(difference, window) / box(there, window), float("inf"))


def box(x: Tensor, window: int) -> Tensor:
    """Mean over the part of a square window that lies inside maps (N, H, W); along columns, then along rows."""
    for sides in ((window, 1), (1, window)):
        x = F.avg_pool2d(x[:, None], sides, stride=1, padding=(sides[0] // 2, sides[1] // 2), count_include_pad=False)[:, 0]
    return x


def right_disparity(cost: Tensor) -> Tensor:
    """Best disparity of every pixel of the right picture, (H, W), from the costs of the left one's."""
    height, width = cost.shape[1:]
    padded = F.pad(cost, (0, len(cost)), value=float("inf"))
    column = torch.arange(width, device=cost.device) + torch.arange(len(cost), device=cost.device)[:, None]
    return padded.gather(2, column[:, None].expand(-1, height, -1)).min(dim=0).indices  # six times as fast as argmin


def fraction(cost: Tensor, disparity: Tensor) -> Tensor:
    """Offset in [-0.5, 0.5] of the minimum of a parabola through three costs, (H, W); 0 at the ends of the range."""
    padded = F.pad(cost, (0, 0, 0, 0, 1, 1), value=float("inf"))
    below, here, above = (padded.gather(0, (disparity + k)[None])[0] for k in (0, 1, 2))
    bend = below + above - 2.0 * here
    offset = 0.5 * (below - above) / bend.clamp(min=1e-9)
    return torch.where(bend.isfinite() & (bend > 1e-9), offset.clamp(-0.5, 0.5), 0.0)
