"""Mixup of the rows of a batch, drawn from (seed, epoch, index) and computed on the device."""

from __future__ import annotations

import numpy as np
import torch
from scipy.special import betaincinv
from torch import Tensor, nn

from ssl_suite.functional.random import Draw

CELLS = 1024


class Mixup(nn.Module):
    """Every row blended with another, and their targets alike, the row itself having the larger share.

    The share is max(s, 1 - s) with s ~ Beta(alpha, alpha), one for each row (MixMatch, arXiv 1905.02249, equations 8 to
    11). timm's ``Mixup`` has one share for a batch, drawn from numpy's generator, and pairs rows end to end; here shares
    and partners are functions of the rows' own keys, so that a resumed run repeats them. Shares come from a table of the
    inverse distribution function, 1024 cells and straight lines between: a rejection sampler would wait for the device.

    Each process mixes its own rows.

    Args:
        alpha: parameter of the Beta distribution, above 0; the smaller, the more of each row is its own.

    Raises:
        ValueError: alpha is not positive.
    """

    shares: Tensor

    def __init__(self, alpha: float) -> None:
        super().__init__()
        if alpha <= 0.0:
            raise ValueError(f"model.mixup={alpha} is the parameter of a Beta distribution and must be above 0; 0.75 is usual")
        upper_half = betaincinv(alpha, alpha, np.linspace(0.5, 1.0, CELLS + 1))
        self.register_buffer("shares", torch.tensor(upper_half, dtype=torch.float32), persistent=False)

    def forward(self, x: Tensor, target: Tensor, length: Tensor | None, draw: Draw) -> tuple[Tensor, Tensor, Tensor | None]:
        """Mix a batch with a random order of itself.

        Args:
            x: standardised samples (B, ...), zero behind the valid steps.
            target: distributions over classes, (B, K).
            length: valid time steps of each row, (B,), or None.
            draw: one stream for each row.

        Returns:
            Samples and targets of the same shapes, and lengths: a mixed row is as long as the longer of the two.
        """
        share, partner = self.draw_shares(draw), draw.bits(1)[:, 0].argsort()
        x = torch.lerp(x[partner], x, share.view(-1, *(1,) * (x.ndim - 1)))
        target = torch.lerp(target[partner], target, share[:, None])
        return x, target, None if length is None else torch.maximum(length, length[partner])

    def draw_shares(self, draw: Draw) -> Tensor:
        """What each row keeps of itself, (B,) in [0.5, 1]."""
        place = draw.uniform(1, high=CELLS)[:, 0]
        cell = place.long()
        return torch.lerp(self.shares[cell], self.shares[cell + 1], place - cell)
