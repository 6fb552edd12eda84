"""Backbones for time series (B, C, T)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ssl_suite.backbones import Staged
from ssl_suite.batch import Spec
from ssl_suite.nn.transformer import Count, PatchTransformer, mean_pool, valid_steps

Norm = Literal["batch", "layer", "none"]


def hide_padding(x: Tensor, length: Tensor | None) -> Tensor:
    """Zeros where a row of x (B, C, T) has ended."""
    valid = valid_steps(length, x.shape[-1])
    return x if valid is None else x.masked_fill(~valid[:, None], 0.0)


class StepNorm(nn.LayerNorm):
    """LayerNorm over the channels of each time step of (B, C, T): blind to padding and to the rest of the batch."""

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, T) to (B, C, T)."""
        return super().forward(x.transpose(1, 2)).transpose(1, 2)


class Entry(nn.Conv1d):
    """The channels of each time step mapped to the net's width; steps past the end stay zero."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__(inputs, width, 1)

    def forward(self, x: Tensor, length: Tensor | None = None) -> Tensor:
        """Map (B, C, T) to (B, D, T)."""
        return hide_padding(super().forward(hide_padding(x, length)), length)


class DilatedBlock(nn.Module):
    """Residual block: twice norm, GELU, dilated convolution. Each convolution sees zeros where a row has ended."""

    def __init__(self, inputs: int, outputs: int, kernel_size: int, dilation: int, norm: Norm) -> None:
        super().__init__()
        make: Callable[[int], nn.Module] = {"batch": nn.BatchNorm1d, "layer": StepNorm, "none": nn.Identity}[norm]
        self.norm1, self.norm2 = make(inputs), make(outputs)
        self.conv1 = nn.Conv1d(inputs, outputs, kernel_size, padding="same", dilation=dilation)
        self.conv2 = nn.Conv1d(outputs, outputs, kernel_size, padding="same", dilation=dilation)
        self.shortcut = nn.Identity() if inputs == outputs else nn.Conv1d(inputs, outputs, 1)

    def forward(self, x: Tensor, length: Tensor | None = None) -> Tensor:
        """Map (B, C, T) to (B, C', T)."""
        out = self.conv1(hide_padding(F.gelu(self.norm1(x)), length))
        out = self.conv2(hide_padding(F.gelu(self.norm2(out)), length))
        return hide_padding(out + self.shortcut(x), length)


class SeriesConvNet(Staged):
    """Dilated residual convolutions that keep the time axis: the encoder of TS2Vec (arXiv 2106.10466), with norms.

    TS2Vec's has none (``norm="none"``); they are added because test-time adaptation moves them. In training, BatchNorm
    counts the zeros past the end of shorter rows.

    Args:
        spec: what a series looks like.
        width: channels inside.
        depth: blocks of that width, with dilation 1, 2, 4, ...; one more block leads to the features.
        kernel_size: steps of a convolution's kernel, odd.
        num_features: width D of the representation.
        pool: ``max`` (TS2Vec) or ``mean`` over time.
        norm: ``batch``, ``layer`` (over the channels of a step, blind to the batch) or ``none``.

    Raises:
        ValueError: unknown pool or norm.
    """

    def __init__(self, spec: Spec, *, width: int = 64, depth: int = 6, kernel_size: int = 3, num_features: int = 128,
                 pool: Literal["max", "mean"] = "max", norm: Norm = "batch") -> None:
        super().__init__()
        if pool not in ("max", "mean") or norm not in ("batch", "layer", "none"):
            raise ValueError(f"pool must be 'max' or 'mean' and norm 'batch', 'layer' or 'none'; "
                             f"got {pool!r} and {norm!r}")
        self.spec, self.num_features, self.pooling = spec, num_features, pool
        self.entry = Entry(spec.shape[0], width)
        self.blocks = nn.ModuleList(DilatedBlock(width, width if i < depth else num_features, kernel_size, 2 ** i, norm)
                                    for i in range(depth + 1))

    @property
    def stages(self) -> list[nn.Module]:
        """The entry and each block."""
        return [self.entry, *self.blocks]

    def token_lengths(self, length: Tensor) -> Tensor:
        """As many tokens as time steps."""
        return length

    def pool(self, maps: Tensor, length: Tensor | None = None) -> Tensor:
        """Maximum or mean over the valid steps of maps (B, D, T), as (B, D)."""
        valid = valid_steps(length, maps.shape[-1])
        if self.pooling == "mean":
            return mean_pool(maps.transpose(1, 2), valid)
        if valid is not None:
            maps = maps.masked_fill(~valid[:, None], torch.finfo(maps.dtype).min)
        return maps.amax(dim=-1)


class SeriesTransformer(PatchTransformer):
    """A transformer over patches of all channels; a last patch that is partly filled is filled up with zeros.

    Args:
        spec: what a series looks like.
        patch: time steps of a patch.
        width: width D of a token.
        depth: number of blocks.
        heads: attention heads.
    """

    def __init__(self, spec: Spec, *, patch: int = 8, width: int = 64, depth: int = 3, heads: int = 4) -> None:
        super().__init__(spec, max_patches=-(-spec.shape[1] // patch), patch_dim=spec.shape[0] * patch, width=width,
                         depth=depth, heads=heads)
        self.patch = patch

    def resized(self, width: int, depth: int) -> SeriesTransformer:
        """An untrained net of the same kind, of another width and depth; heads keep their width."""
        return SeriesTransformer(self.spec, patch=self.patch, width=width, depth=depth, heads=self.heads_of(width))

    def count(self, length: Count) -> Count:
        """Patches of a series with so many steps, the last perhaps partly filled."""
        return (length + self.patch - 1) // self.patch

    def patches(self, x: Tensor, length: Tensor | None = None) -> Tensor:
        """Values of the patches, (B, N, C * patch): channel, then step."""
        x = F.pad(hide_padding(x, length), (0, -x.shape[-1] % self.patch))
        return x.unflatten(2, (-1, self.patch)).transpose(1, 2).flatten(2)
