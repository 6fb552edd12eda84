"""The light networks that tell what is hidden from visible tokens."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from ssl_suite.functional.masking import take
from ssl_suite.nn.transformer import ShortAttention, Transformer, grid_positions, init_transformer


class TransformerDecoder(nn.Module):
    """Decoder of a masked autoencoder (arXiv 2111.06377, section 3, "MAE decoder").

    Args:
        in_dim: width of the encoder's tokens.
        width: width of the decoder, divisible by 4 and by its heads (one per 32 channels).
        depth: blocks.
        patch_dim: values of one patch, P.
        grid: token grid (rows, columns) of pictures, or (N,) of sequences; sequences may be shorter or longer.
    """

    def __init__(self, in_dim: int, width: int, depth: int, patch_dim: int, grid: tuple[int, ...]) -> None:
        super().__init__()
        self.grid = grid
        self.embed = nn.Linear(in_dim, width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        heads = max(1, width // 32)
        self.blocks = nn.ModuleList(Block(width, heads, qkv_bias=True, attn_layer=ShortAttention) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, patch_dim)
        nn.init.normal_(self.mask_token, std=0.02)

    def forward(self, visible: Tensor, kept: Tensor, n: int, kept_valid: Tensor | None = None,
                valid: Tensor | None = None) -> Tensor:
        """Rebuild all N patches.

        Args:
            visible: encoded tokens, (B, M, D).
            kept: their places among the N tokens, (B, M) int64.
            n: number of tokens N.
            kept_valid: which of them were shown, (B, M) bool; all by default.
            valid: tokens that exist, (B, N) bool; all by default.

        Returns:
            Patches, (B, N, P).
        """
        shown = self.embed(visible)
        mask_token = self.mask_token.to(shown.dtype)
        if kept_valid is not None:
            shown = torch.where(kept_valid.unsqueeze(-1), shown, mask_token)
        tokens = mask_token.expand(len(visible), n, -1).scatter(1, kept.unsqueeze(-1).expand_as(shown), shown)
        tokens = tokens + grid_positions(self.grid, n, tokens.shape[-1], tokens.device).to(tokens.dtype)
        attend = None if valid is None else valid[:, None, None, :]
        for block in self.blocks:
            tokens = block(tokens, attn_mask=attend)
        return self.head(self.norm(tokens))


class TokenPredictor(nn.Module):
    """The predictor of I-JEPA (arXiv 2301.08243, section 3): a narrow transformer from context tokens to tokens elsewhere.

    Args:
        in_dim: width D of the encoder's tokens.
        width: width W of the predictor, divisible by 4 and by its heads (one per 32 channels).
        depth: blocks.
        grid: token grid (rows, columns) of pictures, or (N,) of sequences; sequences may be shorter or longer.
    """

    def __init__(self, in_dim: int, width: int, depth: int, grid: tuple[int, ...]) -> None:
        super().__init__()
        self.grid, self.width = grid, width
        self.embed = nn.Linear(in_dim, width)
        self.mask_token = nn.Parameter(torch.zeros(width))
        self.transformer = Transformer(width, depth, max(1, width // 32))
        self.head = nn.Linear(width, in_dim)
        nn.init.trunc_normal_(self.mask_token, std=0.02)
        for linear in (self.embed, self.head):
            init_transformer(linear)

    def positions(self, n: int, places: Tensor) -> Tensor:
        """Positions (..., W) of places (...) among ``n`` tokens."""
        return grid_positions(self.grid, n, self.width, places.device)[places]

    def forward(self, context: Tensor, seen: Tensor, queries: Tensor, asked: Tensor) -> Tensor:
        """Answer K sets of queries about each sample, each by itself.

        Args:
            context: embedded context tokens with their positions, (B, C, W).
            seen: which of them exist, (B, C) bool.
            queries: (B, K, M, W).
            asked: which of them exist, (B, K, M) bool.

        Returns:
            Predicted tokens, (B, K, M, D).
        """
        b, k = queries.shape[:2]
        tokens = torch.cat([context.repeat_interleave(k, dim=0), queries.flatten(0, 1).to(context.dtype)], dim=1)
        valid = torch.cat([seen.repeat_interleave(k, dim=0), asked.flatten(0, 1)], dim=1)
        return self.head(self.transformer(tokens, valid)[:, context.shape[1]:]).unflatten(0, (b, k))


class ConvDecoder(nn.Module):
    """The decoder of data2vec 2.0 (arXiv 2212.07525, section 3.2): grouped convolutions over visible tokens and noise.

    Args:
        dim: width D of the encoder's tokens and of what is predicted.
        width: channels W of the decoder; like ``dim`` divisible by ``conv_groups``.
        depth: convolutions, each with LayerNorm, GELU and, from the second on, a residual connection.
        kernel: tokens that a convolution sees along each axis, odd.
        conv_groups: groups of the convolutions.
        grid: token grid (rows, columns) of pictures, or (N,) of sequences; sequences may be shorter or longer.

    Raises:
        ValueError: the groups do not divide the widths, or the kernel is even.
    """

    def __init__(self, dim: int, width: int, depth: int, kernel: int, conv_groups: int, grid: tuple[int, ...]) -> None:
        super().__init__()
        if dim % conv_groups or width % conv_groups or kernel % 2 == 0:
            raise ValueError(f"conv_groups={conv_groups} must divide the widths {dim} and {width}, and kernel={kernel} be odd")
        make = nn.Conv2d if len(grid) == 2 else nn.Conv1d
        self.grid = grid
        self.convs = nn.ModuleList(make(width if i else dim, width, kernel, padding=kernel // 2, groups=conv_groups)
                                   for i in range(depth))
        self.norms = nn.ModuleList(nn.LayerNorm(width, elementwise_affine=False) for _ in range(depth))
        self.head = nn.Linear(width, dim)

    def forward(self, visible: Tensor, kept: Tensor, noise: Tensor, shown: Tensor | None = None,
                valid: Tensor | None = None) -> Tensor:
        """Predict all tokens.

        Args:
            visible: encoded tokens, (B, M, D).
            kept: their places, (B, M) int64.
            noise: what stands in the places of hidden tokens, (B, N, D).
            shown: which of the visible tokens count, (B, M) bool; all by default.
            valid: tokens that exist, (B, N) bool; all by default.

        Returns:
            (B, N, D).
        """
        tokens = noise.to(visible.dtype)
        if shown is not None:
            visible = torch.where(shown.unsqueeze(-1), visible, take(tokens, kept))
        tokens = tokens.scatter(1, kept.unsqueeze(-1).expand_as(visible), visible)
        shape = self.grid if len(self.grid) == 2 else (tokens.shape[1],)
        for i, (conv, norm) in enumerate(zip(self.convs, self.norms, strict=True)):
            if valid is not None:
                tokens = tokens.masked_fill(~valid.unsqueeze(-1), 0.0)
            maps = conv(tokens.transpose(1, 2).unflatten(2, shape))
            out = F.gelu(norm(maps.flatten(2).transpose(1, 2)))
            tokens = tokens + out if i else out
        return self.head(tokens)
