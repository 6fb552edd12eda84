"""The light networks that tell what is hidden from visible tokens."""

from __future__ import annotations

import torch
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from ssl_suite.nn.transformer import Transformer, grid_positions, init_transformer


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
        self.blocks = nn.ModuleList(Block(width, max(1, width // 32), qkv_bias=True) for _ in range(depth))
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
