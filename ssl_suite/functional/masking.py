"""Random masks over tokens. ``mask`` True = hidden."""

from __future__ import annotations

import torch
from torch import Tensor

from ssl_suite.functional.random import Draw


def random_order(draw: Draw, n: int, valid: Tensor | None = None) -> Tensor:
    """A random order of tokens for each row, tokens that do not exist last.

    Args:
        draw: one stream per row.
        n: number of tokens N.
        valid: tokens that exist, (B, N) bool; all by default.

    Returns:
        Token numbers in random order, (B, N) int64.
    """
    noise = draw.uniform(n)
    if valid is not None:
        noise = noise + 2.0 * ~valid
    return noise.argsort(dim=1)


def take(tokens: Tensor, ids: Tensor) -> Tensor:
    """Tokens (B, N, D) at ids (B, M), as (B, M, D)."""
    return tokens.gather(1, ids.unsqueeze(-1).expand(-1, -1, tokens.shape[-1]))


def standardise_patches(patches: Tensor, eps: float = 1e-6) -> Tensor:
    """Each patch (..., P) brought to zero mean and unit variance: the targets of MAE (arXiv 2111.06377, section 3)."""
    mean = patches.mean(dim=-1, keepdim=True)
    return (patches - mean) / (patches.var(dim=-1, keepdim=True) + eps).sqrt()


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean of values (B, N) where mask (B, N) is True; 0 where nothing is."""
    weights = mask.to(values.dtype)
    return (values * weights).sum() / weights.sum().clamp_min(1.0)


def visible_count(n: int, ratio: float) -> int:
    """Tokens left visible of ``n`` under a mask ratio; at least one.

    Raises:
        ValueError: the ratio lies outside [0, 1).
    """
    if not 0.0 <= ratio < 1.0:
        raise ValueError(f"mask_ratio must lie in [0, 1), got {ratio}")
    return max(1, int(n * (1.0 - ratio)))


def mask_from_order(order: Tensor, visible: int) -> Tensor:
    """Mask (B, N) bool that hides all but the first ``visible`` tokens of an order (B, N)."""
    mask = torch.ones_like(order, dtype=torch.bool)
    return mask.scatter(1, order[:, :visible], False)


def shown_tokens(valid: Tensor, ratio: float, count: int) -> Tensor:
    """Which of the first ``count`` tokens of an order are shown of rows that have tokens of their own to count.

    Args:
        valid: tokens that exist, (B, N) bool.
        ratio: share of a row's tokens to hide, in [0, 1).
        count: tokens that the longest row shows, M.

    Returns:
        (B, M) bool; at least one of each row is True.
    """
    shown = (valid.sum(1) * (1.0 - ratio)).long().clamp(1, count)
    return torch.arange(count, device=valid.device) < shown[:, None]
