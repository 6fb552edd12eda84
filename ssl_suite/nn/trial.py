"""A look at the first losses of a deployment, before anything is learned from them."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Trial(nn.Module):
    """Collects so many losses, then says whether their mean lies within a multiple of what training ended with.

    Args:
        length: losses to collect; 0 lets everything pass.
        tolerance: the multiple.

    Raises:
        ValueError: a negative length, or a tolerance that is not positive.
    """

    losses: Tensor

    def __init__(self, length: int, tolerance: float) -> None:
        super().__init__()
        if length < 0 or tolerance <= 0:
            raise ValueError(f"trial={length} must be at least 0 and tolerance={tolerance} positive; they are 20 and 20 by default")
        self.tolerance = tolerance
        self.register_buffer("losses", torch.full((length,), torch.nan))

    @property
    def missing(self) -> int:
        """Losses still to be collected."""
        return int(self.losses.isnan().sum())

    def add(self, loss: Tensor) -> None:
        """Collect one."""
        self.losses[-self.missing] = loss.detach()

    def refusal(self, typical: Tensor) -> str:
        """Why nothing should be learned, given the loss at the end of training; empty while losses are missing or they pass."""
        mean = self.losses.mean()  # NaN while one is missing
        if not mean > self.tolerance * typical:
            return ""
        return (f"shift out of range: the first {len(self.losses)} losses average {float(mean):.3g}, over {self.tolerance:g} times "
                f"the {float(typical):.3g} of training")
