"""Parts of one picture pasted over another, for pictures and masks alike."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ssl_suite.functional.random import Draw
from ssl_suite.functional.segmentation import IGNORE


def partners(n: int, device: torch.device) -> Tensor:
    """Which row is pasted over each, (n,) int64: neighbours in pairs, an odd last row over itself.

    The pairs of a batch are those of its halves, so that two processes mix as one does.
    """
    rows = torch.arange(n, device=device)
    return torch.where((rows ^ 1) < n, rows ^ 1, rows)


def paste(values: Tensor, where: Tensor) -> Tensor:
    """Rows with the places ``where`` taken from their `partners`.

    Args:
        values: (B, ..., H, W).
        where: True where the partner shows, (B, H, W).
    """
    others = values[partners(len(values), values.device)]
    return torch.where(where.view(len(where), *(1,) * (values.ndim - 3), *where.shape[1:]), others, values)


def cutmix_boxes(draw: Draw, h: int, w: int, p: float = 0.5, area: tuple[float, float] = (0.02, 0.4),
                 ratio: tuple[float, float] = (0.3, 1 / 0.3)) -> Tensor:
    """A random box per sample, inside the picture: the CutMix of French et al., arXiv 1906.01916, as UniMatch draws it.

    Args:
        draw: random numbers, one stream per sample.
        h: rows.
        w: columns.
        p: probability of a box at all.
        area: range of its part of the picture.
        ratio: range of its height over its width, drawn on a logarithmic scale; a side longer than the picture is cut off.

    Returns:
        True inside the box, (B, h, w).
    """
    size = draw.uniform(low=area[0], high=area[1]) * (h * w)
    shape = draw.uniform(low=math.log(ratio[0]), high=math.log(ratio[1])).exp()
    some = draw.chance(p)

    def inside(extent: Tensor, side: int) -> Tensor:
        extent = extent.round().clamp(1, side)
        first = (draw.uniform() * (side - extent + 1)).floor()
        place = torch.arange(side, device=extent.device)
        return (place >= first[:, None]) & (place < (first + extent)[:, None])

    rows, columns = inside((size * shape).sqrt(), h), inside((size / shape).sqrt(), w)
    return rows[:, :, None] & columns[:, None, :] & some[:, None, None]


def class_regions(target: Tensor, num_classes: int, draw: Draw) -> Tensor:
    """The pixels of half of the classes in each mask, rounded up: what ClassMix pastes (Olsson et al., arXiv 2007.07936).

    Args:
        target: (B, H, W) int64, `IGNORE` where there is no class; such pixels are never pasted.
        num_classes: number of classes K.
        draw: random numbers, one stream per sample.

    Returns:
        True where the classes chosen are, (B, H, W).
    """
    counted = target != IGNORE
    index = target.clamp(min=0).flatten(1)
    present = torch.zeros(len(target), num_classes, device=target.device).scatter_add_(1, index, counted.flatten(1).float()) > 0
    order = draw.uniform(num_classes).masked_fill(~present, 2.0).argsort(dim=1).argsort(dim=1)  # the absent ones last
    chosen = order < (present.sum(1, keepdim=True) + 1) // 2
    return chosen.gather(1, index).view_as(target) & counted
