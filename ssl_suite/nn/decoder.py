"""The light transformer that rebuilds hidden patches from visible tokens."""

from __future__ import annotations

import torch
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from ssl_suite.nn.transformer import sincos_1d, sincos_2d


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
        tokens = tokens + self.positions(n, tokens)
        attend = None if valid is None else valid[:, None, None, :]
        for block in self.blocks:
            tokens = block(tokens, attn_mask=attend)
        return self.head(self.norm(tokens))

    def positions(self, n: int, like: Tensor) -> Tensor:
        """Fixed sinusoidal positions (N, W)."""
        table = sincos_2d(*self.grid, like.shape[-1]) if len(self.grid) == 2 else sincos_1d(n, like.shape[-1])
        return table.to(like)
