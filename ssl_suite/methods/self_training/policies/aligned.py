"""Policies that first pull the guesses towards a distribution over classes: SoftMatch and AdaMatch."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ssl_suite.functional.distributed import gather, mean_over_processes
from ssl_suite.methods.self_training.policies.base import FixedThreshold, Policy, check_range


class Alignment(nn.Module):
    """Distribution alignment: p <- p * (target + 1e-6) / (running mean of p + 1e-6), made to sum to 1.

    The running mean starts with the first batch. The target is uniform, or, once labelled rows are given, the running mean of
    theirs, starting from uniform (ReMixMatch, arXiv 1911.09785; constants and starts of the USB benchmark).

    Args:
        num_classes: number of classes K.
        momentum: of the running means, in [0, 1].
    """

    mean: Tensor
    target: Tensor
    started: Tensor

    def __init__(self, num_classes: int, momentum: float) -> None:
        super().__init__()
        self.momentum = momentum
        self.register_buffer("mean", torch.full((num_classes,), 1.0 / num_classes))
        self.register_buffer("target", torch.full((num_classes,), 1.0 / num_classes))
        self.register_buffer("started", torch.tensor(0.0))

    @torch.no_grad()
    def forward(self, probs: Tensor, labeled_probs: Tensor | None = None) -> Tensor:
        """Align rows, after the means have moved.

        Args:
            probs: probabilities (M, K), detached.
            labeled_probs: probabilities of labelled rows, (B, K), detached; None leaves the target where it is.

        Returns:
            Aligned probabilities, (M, K).
        """
        guesses = (probs,) if labeled_probs is None else (probs, labeled_probs)
        mean, *given = mean_over_processes(torch.stack([p.mean(0).to(self.mean.dtype) for p in guesses]))
        self.mean.lerp_(mean, 1.0 - self.momentum * self.started)
        self.started.fill_(1.0)
        if given:
            self.target.lerp_(given[0], 1.0 - self.momentum)
        aligned = probs * (self.target + 1e-6) / (self.mean + 1e-6)
        return aligned / aligned.sum(1, keepdim=True)


class SoftMatch(Policy):
    """SoftMatch: every guess counts, the less the further its confidence lies below the mean.

    The weight is exp(-min(confidence - mu, 0)^2 / (2 var / n_sigma^2)) with running mean mu and (unbiased) variance of
    the confidence, moved by this step before they are used and starting from 1/K and 1. Confidences are those after
    alignment to the uniform distribution; the label is the guess before it.

    Args:
        num_classes: number of classes K.
        momentum: of the running statistics, in [0, 1].
        n_sigma: the standard deviation is divided by this; above 0.

    Raises:
        ValueError: the momentum lies outside [0, 1], or ``n_sigma`` is not positive.
    """

    paper = "Chen et al., ICLR 2023, arXiv 2301.10921"
    mean: Tensor
    variance: Tensor

    def __init__(self, num_classes: int, momentum: float = 0.999, n_sigma: float = 2.0) -> None:
        super().__init__()
        check_range("momentum", momentum, 0.0, 1.0)
        if n_sigma <= 0.0:
            raise ValueError(f"policy.n_sigma must be above 0, got {n_sigma}")
        self.momentum, self.n_sigma = momentum, n_sigma
        self.align = Alignment(num_classes, momentum)
        self.register_buffer("mean", torch.tensor(1.0 / num_classes))
        self.register_buffer("variance", torch.tensor(1.0))

    @torch.no_grad()
    def forward(self, probs: Tensor, index: Tensor | None = None, labeled_probs: Tensor | None = None,
                labels: Tensor | None = None) -> tuple[Tensor, Tensor]:
        confidence = self.align(probs).amax(1)
        everywhere = gather(confidence).to(self.mean.dtype)
        self.mean.lerp_(everywhere.mean(), 1.0 - self.momentum)
        self.variance.lerp_(everywhere.var(correction=min(1, len(everywhere) - 1)), 1.0 - self.momentum)
        below = (confidence - self.mean).clamp(max=0.0)
        return probs.argmax(1), torch.exp(-0.5 * self.n_sigma**2 * below**2 / self.variance).to(probs.dtype)


class AdaMatch(FixedThreshold):
    """AdaMatch: aligned guesses, believed where they are nearly as sure as those on labelled samples.

    Guesses are aligned to the running mean of the predictions on labelled rows, and count from ``threshold`` times the
    mean confidence on the labelled rows of the step on. Label and confidence are those after alignment. The label is
    hard, as in the USB benchmark; the paper's is the aligned distribution. Its random interpolation of logits between
    domains belongs to the network, not to the policy, and is left out.

    Args:
        num_classes: number of classes K.
        threshold: share of the labelled rows' mean confidence, in [0, 1].
        momentum: of the running means, in [0, 1].

    Raises:
        ValueError: threshold or momentum lies outside [0, 1], or a step brings no labelled rows.
    """

    paper = "Berthelot et al., ICLR 2022, arXiv 2106.04732"

    def __init__(self, num_classes: int, threshold: float = 0.95, momentum: float = 0.999) -> None:
        super().__init__(threshold)
        check_range("momentum", momentum, 0.0, 1.0)
        self.align = Alignment(num_classes, momentum)

    @torch.no_grad()
    def forward(self, probs: Tensor, index: Tensor | None = None, labeled_probs: Tensor | None = None,
                labels: Tensor | None = None) -> tuple[Tensor, Tensor]:
        if labeled_probs is None:
            raise ValueError("AdaMatch compares with the labelled rows of the step: give the policy labeled_probs")
        confidence, target = self.align(probs, labeled_probs).max(dim=1)
        least = self.threshold * mean_over_processes(labeled_probs.amax(1).mean())
        return target, (confidence >= least).to(probs.dtype)
