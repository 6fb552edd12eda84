"""Transformer blocks that know of padding, fixed positions, and the core shared by patch transformers over time."""

from __future__ import annotations

from typing import TypeVar

import torch
from timm.layers import trunc_normal_
from timm.models.vision_transformer import Attention, Block
from torch import Tensor, nn

from ssl_suite.batch import Spec

Count = TypeVar("Count", int, Tensor)


def sincos_1d(n: int, dim: int, device: torch.device | None = None) -> Tensor:
    """Sinusoidal positions 0 .. n-1 ("Attention is all you need", section 3.5): sines first, then cosines.

    Args:
        n: number of positions.
        dim: width, even.
        device: where to make them.

    Returns:
        Positions (n, dim), float32.

    Raises:
        ValueError: the width is odd.
    """
    if dim % 2:
        raise ValueError(f"sinusoidal positions need an even width, got {dim}")
    frequency = torch.arange(dim // 2, device=device, dtype=torch.float32).mul_(-2.0 / dim)
    angle = torch.arange(n, device=device, dtype=torch.float32)[:, None] * 10000.0 ** frequency
    return torch.cat([angle.sin(), angle.cos()], dim=1)


def sincos_2d(rows: int, cols: int, dim: int, device: torch.device | None = None) -> Tensor:
    """Positions of a grid in row-major order: half of the width for the column, half for the row, as MAE has them.

    Returns:
        Positions (rows * cols, dim), float32.

    Raises:
        ValueError: the width is no multiple of 4.
    """
    if dim % 4:
        raise ValueError(f"positions of a grid need a width that is a multiple of 4, got {dim}")
    col = sincos_1d(cols, dim // 2, device).expand(rows, -1, -1)
    row = sincos_1d(rows, dim // 2, device)[:, None].expand(-1, cols, -1)
    return torch.cat([col, row], dim=2).flatten(0, 1)


def grid_positions(grid: tuple[int, ...], n: int, dim: int, device: torch.device | None = None) -> Tensor:
    """Fixed sinusoidal positions (N, dim) of a picture's ``grid`` (rows, columns), or of a sequence of ``n`` tokens."""
    return sincos_2d(*grid, dim, device) if len(grid) == 2 else sincos_1d(n, dim, device)


def valid_steps(length: Tensor | None, n: int) -> Tensor | None:
    """Steps that exist, (B, n) bool, from the number of valid steps of each row (B,); None where nothing is padded."""
    return None if length is None else torch.arange(n, device=length.device) < length[:, None]


def attention_mask(valid: Tensor | None) -> Tensor | None:
    """Keys that may be attended to, (B, 1, 1, N) bool, from valid (B, N) bool; None stays None.

    A row without any valid token attends to all, so that no NaN arises.
    """
    return None if valid is None else (valid | ~valid.any(dim=1, keepdim=True))[:, None, None]


def mean_pool(tokens: Tensor, valid: Tensor | None = None) -> Tensor:
    """Mean of tokens (B, N, D) over the valid ones (B, N), as (B, D); 0 for a row without any."""
    if valid is None:
        return tokens.mean(dim=1)
    kept = tokens.masked_fill(~valid.unsqueeze(-1), 0.0)
    return kept.sum(dim=1) / valid.sum(dim=1, keepdim=True).clamp_min(1)


def init_transformer(module: nn.Module) -> None:
    """Initialise one module as ViTs are, linear weights N(0, 0.02) and biases 0; for `nn.Module.apply`."""
    if isinstance(module, nn.Linear):
        trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def whole_heads(width: int, head_width: int) -> int:
    """How many attention heads make up a width.

    Raises:
        ValueError: no whole number of them does.
    """
    if width < head_width or width % head_width:
        raise ValueError(f"width={width} must be a multiple of {head_width}, the width of an attention head")
    return width // head_width


class ShortAttention(Attention):
    """timm's attention, written out where that is faster: over few tokens, in bfloat16, on a CPU.

    PyTorch's fused attention is slow there, above all its gradient. It keeps the N x N weights.
    """

    most = 256
    """Tokens from which on the weights would take too much memory."""

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        """Map tokens (B, N, D) to (B, N, D); the mask is of bool, True where a token may be attended to."""
        short = x.device.type == "cpu" and torch.is_autocast_enabled("cpu") and x.shape[1] <= self.most and not is_causal
        if short and attn_mask is not None:
            attn_mask = torch.zeros_like(attn_mask, dtype=torch.get_autocast_dtype("cpu")).masked_fill(~attn_mask, -torch.inf)
        self.fused_attn = not short  # type: ignore[misc]
        return super().forward(x, attn_mask, is_causal)


class Transformer(nn.Module):
    """Pre-norm blocks (timm's) and a final LayerNorm; tokens that do not exist are attended to by none.

    Args:
        width: width D of a token.
        depth: number of blocks.
        heads: attention heads; must divide the width.
        mlp_ratio: hidden width of a block's MLP over its width.

    Raises:
        ValueError: the heads do not divide the width.
    """

    def __init__(self, width: int, depth: int, heads: int, mlp_ratio: float = 4.0) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"width={width} cannot be split over heads={heads}; make it a multiple")
        self.blocks = nn.ModuleList(Block(width, heads, mlp_ratio, qkv_bias=True, attn_layer=ShortAttention) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.apply(init_transformer)

    def forward(self, tokens: Tensor, valid: Tensor | None = None) -> Tensor:
        """Map tokens (B, N, D), of which those with valid (B, N) True exist, to (B, N, D)."""
        mask = attention_mask(valid)
        for block in self.blocks:
            tokens = block(tokens, attn_mask=mask)
        return self.norm(tokens)

    def layers(self, tokens: Tensor, valid: Tensor | None = None) -> list[Tensor]:
        """What each block makes of tokens (B, N, D), each (B, N, D)."""
        outputs, mask = [tokens], attention_mask(valid)
        for block in self.blocks:
            outputs.append(block(outputs[-1], attn_mask=mask))
        return outputs[1:]


class PatchTransformer(nn.Module):
    """A transformer over patches along time; subclasses say what a patch is by `patches` and `count`.

    Patches are projected, get sinusoidal positions (so any length will do), pass the blocks and are averaged over those
    that exist.

    Args:
        spec: what a sample looks like.
        max_patches: patches of the longest sample; becomes `grid`.
        patch_dim: numbers P in a patch.
        width: width D of a token.
        depth: number of blocks.
        heads: attention heads.
    """

    num_prefix_tokens = 0

    def __init__(self, spec: Spec, *, max_patches: int, patch_dim: int, width: int, depth: int, heads: int) -> None:
        super().__init__()
        self.spec, self.grid, self.patch_dim, self.num_features = spec, (max_patches,), patch_dim, width
        self.project = nn.Linear(patch_dim, width)
        self.transformer = Transformer(width, depth, heads)
        init_transformer(self.project)

    def heads_of(self, width: int) -> int:
        """Attention heads of a net of another width; ValueError where they would not be whole."""
        return whole_heads(width, self.transformer.blocks[0].attn.head_dim)  # type: ignore[union-attr,arg-type]

    @property
    def frontend(self) -> nn.Module:
        """The linear layer that embeds patches: what lies below the transformer."""
        return self.project

    def patches(self, x: Tensor, length: Tensor | None = None) -> Tensor:
        """Content of the patches, (B, N, P)."""
        raise NotImplementedError

    def count(self, length: Count) -> Count:
        """Patches of a sample with so many time steps; the last may be partly filled."""
        raise NotImplementedError

    def token_lengths(self, length: Tensor) -> Tensor:
        """Valid tokens of rows with ``length`` (B,) valid time steps."""
        return self.count(length)

    def embed(self, x: Tensor, length: Tensor | None = None) -> Tensor:
        """Patch embedding plus position, (B, N, D)."""
        return self.project(self.patches(x, length)) + self.positions(x)

    def positions(self, x: Tensor) -> Tensor:
        """Positions of the patches of samples of this length, (N, D)."""
        return sincos_1d(self.count(x.shape[-1]), self.num_features, x.device)

    def patch_valid(self, x: Tensor, length: Tensor | None) -> Tensor | None:
        """Patches that exist, (B, N) bool; None where nothing is padded."""
        return None if length is None else valid_steps(self.token_lengths(length), self.count(x.shape[-1]))

    def encode(self, tokens: Tensor, valid: Tensor | None = None) -> Tensor:
        """Blocks and final norm over tokens (B, M, D), all of them or the visible ones, as (B, M, D)."""
        return self.transformer(tokens, valid)

    def layers(self, tokens: Tensor, valid: Tensor | None = None) -> list[Tensor]:
        """What each block makes of tokens (B, M, D), each (B, M, D)."""
        return self.transformer.layers(tokens, valid)

    def pooled(self, encoded: Tensor, valid: Tensor | None = None) -> Tensor:
        """Representation (B, D) from what `encode` gave, (B, M, D), of whose tokens those ``valid`` exist."""
        return mean_pool(encoded, valid)

    def tokens(self, x: Tensor, length: Tensor | None = None) -> Tensor:
        """One vector per patch, (B, N, D); meaningless where `patch_valid` is False."""
        return self.encode(self.embed(x, length), self.patch_valid(x, length))

    def forward(self, x: Tensor, length: Tensor | None = None) -> Tensor:
        """Mean of the tokens that exist, (B, D)."""
        return self.pooled(self.tokens(x, length), self.patch_valid(x, length))
