"""Masks made of blocks of neighbouring tokens, drawn per sample: rectangles of a grid, spans of a sequence.

A sequence is a grid of one row. Shapes of tensors follow from the grid alone and what is ragged is told by a second mask, so
that nothing waits for the device and a sample's blocks do not depend on its batch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ssl_suite.functional.masking import random_order
from ssl_suite.functional.random import Draw


def rows_and_columns(grid: Sequence[int], n: int) -> tuple[int, int]:
    """Rows and columns of ``n`` tokens: the ``grid`` (rows, columns) of pictures; one row for sequences."""
    return (grid[0], grid[1]) if len(grid) == 2 else (1, n)


def rectangles(top: Tensor, left: Tensor, height: Tensor, width: Tensor, shape: tuple[int, int]) -> Tensor:
    """Tokens inside of rectangles given in whole tokens, each (...), of a grid of N tokens, as (..., N) bool."""
    row, col = (torch.arange(size, device=top.device) for size in shape)
    rows = (row >= top.unsqueeze(-1)) & (row < (top + height).unsqueeze(-1))
    cols = (col >= left.unsqueeze(-1)) & (col < (left + width).unsqueeze(-1))
    return (rows.unsqueeze(-1) & cols.unsqueeze(-2)).flatten(-2)


def _columns(shape: tuple[int, int], valid: Tensor | None, like: Tensor) -> Tensor:
    """Columns that exist in each row of a batch, (B, 1)."""
    return torch.full_like(like[:, :1], shape[1]) if valid is None else valid.sum(dim=1, keepdim=True).to(like.dtype)


def _placed(draw: Draw, height: Tensor, width: Tensor, shape: tuple[int, int], columns: Tensor) -> Tensor:
    """Rectangles (B, K, N) of sizes (B, K) at random places within the grid."""
    top = (draw.uniform(height.shape[1]) * (shape[0] - height + 1)).floor()
    left = (draw.uniform(height.shape[1]) * (columns - width + 1)).floor()
    return rectangles(top, left, height, width, shape)


def _sides(area: Tensor, aspect: Tensor, shape: tuple[int, int], columns: Tensor) -> tuple[Tensor, Tensor]:
    """Height and width in whole tokens, (B, K) each, of an area and a height over width; spans of one row as long as the area."""
    if shape[0] == 1:
        return torch.ones_like(area), torch.minimum(area.round().clamp_min(1), columns)
    height = (area * aspect).sqrt().round().clamp(1, shape[0])
    return height, torch.minimum((area / aspect).sqrt().round().clamp_min(1), columns)


def most_in_block(shape: tuple[int, int], scale: Sequence[float], aspect: Sequence[float]) -> int:
    """Tokens that a block of `random_blocks` holds at most: the shape of what is gathered from one."""
    area = scale[1] * shape[0] * shape[1]
    if shape[0] == 1:
        return min(max(1, round(area)), shape[1])
    sides = [max(1, round(math.sqrt(area * factor))) for factor in (max(aspect), 1.0 / min(aspect))]
    return min(sides[0], shape[0]) * min(sides[1], shape[1])


def random_blocks(draw: Draw, k: int, shape: tuple[int, int], scale: Sequence[float], aspect: Sequence[float],
                  valid: Tensor | None = None) -> Tensor:
    """K blocks of each sample, of random size, form and place (I-JEPA, arXiv 2301.08243, section 4).

    Args:
        draw: one stream per row.
        k: blocks K.
        shape: rows and columns of the grid of N tokens.
        scale: range of a block's share of the tokens.
        aspect: range of its height over its width; spans of a sequence have none.
        valid: tokens that exist, (B, N) bool, the first of each row; for sequences only.

    Returns:
        (B, K, N) bool.
    """
    share = draw.uniform(k, low=scale[0], high=scale[1])
    columns = _columns(shape, valid, share)
    height, width = _sides(share * shape[0] * columns, draw.uniform(k, low=aspect[0], high=aspect[1]), shape, columns)
    return _placed(draw, height, width, shape, columns)


def block_mask(draw: Draw, shape: tuple[int, int], ratio: Tensor, smallest: int = 4, aspect: float = 0.3, trials: int = 20,
               valid: Tensor | None = None) -> Tensor:
    """Hide blocks until a share of the tokens is hidden (BEiT, arXiv 2106.08254, algorithm 1, as iBOT and DINOv2 use it).

    A block is taken when it hides something new and not too much. Where no block fits any more, fewer tokens are hidden.

    Args:
        draw: one stream per row.
        shape: rows and columns of the grid of N tokens.
        ratio: share of each row's tokens to hide, (B,); 0 hides none.
        smallest: tokens of a block at least, as long as so many are still to be hidden.
        aspect: smallest height over width; the largest is its inverse.
        trials: blocks that are tried.
        valid: tokens that exist, (B, N) bool, the first of each row; for sequences only.

    Returns:
        Mask, (B, N) bool.
    """
    columns = _columns(shape, valid, ratio.unsqueeze(1))
    wanted = (ratio.unsqueeze(1) * shape[0] * columns).floor()
    mask = torch.zeros(len(ratio), shape[0] * shape[1], dtype=torch.bool, device=ratio.device)
    for _ in range(trials):
        missing = wanted - mask.sum(dim=1, keepdim=True)
        least = missing.clamp_max(smallest)
        area = least + draw.uniform(1) * (missing - least)
        form = draw.uniform(1, low=math.log(aspect), high=-math.log(aspect)).exp()
        block = _placed(draw, *_sides(area, form, shape, columns), shape, columns)[:, 0]
        new = (block & ~mask).sum(dim=1, keepdim=True)
        mask = mask | (block & (new <= missing))
    return mask


def kept_blocks(draw: Draw, shape: tuple[int, int], side: int, count: int, valid: Tensor | None = None) -> Tensor:
    """Tokens to show, in blocks that may overlap, cut or filled up at random to ``count`` (data2vec 2.0, arXiv 2212.07525).

    Args:
        draw: one stream per row.
        shape: rows and columns of the grid of N tokens.
        side: side of a square block, tokens; length of a span.
        count: tokens to show, M.
        valid: tokens that exist, (B, N) bool, the first of each row; for sequences only.

    Returns:
        Token numbers, those of blocks first, (B, M) int64.
    """
    height = min(side, shape[0])
    k = math.ceil(count / (height * min(side, shape[1])))
    noise = draw.uniform(shape[0] * shape[1])
    columns = _columns(shape, valid, noise)
    sizes = torch.full_like(noise[:, :1], height).expand(-1, k), columns.clamp_max(side).expand(-1, k)
    noise = noise - 1.0 * _placed(draw, *sizes, shape, columns).any(dim=1)
    return (noise if valid is None else noise + 4.0 * ~valid).argsort(dim=1)[:, :count]


def unit_mask(draw: Draw, shape: tuple[int, int], unit: int, ratio: float, valid: Tensor | None = None) -> Tensor:
    """Hide whole cells of ``unit`` x ``unit`` tokens (SimMIM, arXiv 2111.09886, section 3.2): ceil(ratio * cells) of each row.

    Args:
        draw: one stream per row.
        shape: rows and columns of the grid of N tokens.
        unit: side of a cell; cells at the edge may be smaller.
        ratio: share of the cells to hide.
        valid: tokens that exist, (B, N) bool, the first of each row; for sequences only.

    Returns:
        Mask, (B, N) bool.
    """
    rows, cols = (math.ceil(size / unit) for size in shape)
    device = draw.keys.device
    cells = torch.full((len(draw), 1), rows * cols, device=device)
    if valid is not None:
        cells = (valid.sum(dim=1, keepdim=True) + unit - 1) // unit
    order = random_order(draw, rows * cols, torch.arange(rows * cols, device=device) < cells)
    hidden = order.argsort(dim=1) < (ratio * cells - 1e-4).ceil()
    row, col = (torch.arange(size, device=device) // unit for size in shape)
    mask = hidden[:, (row[:, None] * cols + col).flatten()]
    return mask if valid is None else mask & valid


def places(mask: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Where a mask (..., N) is True, padded to ``size`` places.

    Returns:
        Token numbers (..., M) in order and which of them count (..., M) bool; what a mask has beyond M is left out.
    """
    ids = mask.int().argsort(dim=-1, descending=True, stable=True)[..., :size]
    return ids, mask.gather(-1, ids)
