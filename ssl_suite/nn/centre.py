"""What keeps a teacher's distributions from collapsing onto one prototype."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ssl_suite.functional.distributed import mean_over_processes


class Centre(nn.Module):
    """A running mean of a teacher's scores, taken off before they are sharpened (DINO, arXiv 2104.14294, equation 4).

    It moves once per pass in training, by the mean over all processes. lightly's loss has it inside; here it stands alone, so
    that padded places can be left out of the mean.

    Args:
        prototypes: number of prototypes K.
        momentum: share of the old mean that stays, in [0, 1].
    """

    value: Tensor

    def __init__(self, prototypes: int, momentum: float = 0.9) -> None:
        super().__init__()
        self.momentum = momentum
        self.register_buffer("value", torch.zeros(prototypes))

    @torch.no_grad()
    def forward(self, scores: Tensor, temperature: float, counts: Tensor | None = None) -> Tensor:
        """The teacher's distributions.

        Args:
            scores: (..., K).
            temperature: of the softmax; above 0.
            counts: which scores the mean is over, (...) bool; all by default.

        Returns:
            (..., K) float32 without gradient; sums to 1.
        """
        scores = scores.float()
        targets = ((scores - self.value) / temperature).softmax(dim=-1)
        if self.training:
            weights = torch.ones_like(scores[..., :1]) if counts is None else counts.unsqueeze(-1).float()
            sums = torch.cat([(scores * weights).flatten(0, -2).sum(dim=0), weights.sum().view(1)])
            total, number = mean_over_processes(sums).tensor_split([-1])
            mean = torch.where(number > 0, total / number.clamp_min(1e-6), self.value)
            self.value.lerp_(mean, 1.0 - self.momentum)
        return targets
