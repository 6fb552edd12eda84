"""Policies: which pseudo-labels are believed, and how much. FixMatch takes any of them as its ``policy``.

A policy is a module with ``forward(probs, index=None, labeled_probs=None) -> (target, weight)``:

``probs``          probabilities of the weak view, (M, K), detached ``index``          positions of the samples in the
data set, (M,), for policies that remember samples ``labeled_probs``  probabilities of the labelled rows of the same
step, (B, K), detached, for policies that compare with them ``target``         pseudo-label, (M,) int64, or a
distribution over classes, (M, K) ``weight``         weight of each sample, (M,), 0 where it is not believed

What a policy remembers stands in buffers, so that checkpoints and device moves carry it.
"""

from __future__ import annotations

from torch import Tensor, nn


class FixedThreshold(nn.Module):
    """The most probable class, believed where its probability reaches a threshold (FixMatch, equation 4).

    Args:
        threshold: least probability, in [0, 1]; 0 believes everything.

    Raises:
        ValueError: the threshold lies outside [0, 1].
    """

    def __init__(self, threshold: float = 0.95) -> None:
        super().__init__()
        if not 0.0 <= threshold <= 1.0:
            raise ValueError(f"policy.threshold must lie in [0, 1], got {threshold}")
        self.threshold = threshold

    def forward(self, probs: Tensor, index: Tensor | None = None,
                labeled_probs: Tensor | None = None) -> tuple[Tensor, Tensor]:
        confidence, target = probs.max(dim=1)
        return target, (confidence >= self.threshold).to(probs.dtype)
