"""LAME: smooth a batch's predictions over the neighbourhood of its features; weights never move.

Idea: adapting a network's weights can fail badly when hyper-parameters or the stream are not as expected. Correct its
outputs instead: samples with close features should get the same class, as far as the source predictions allow.

Paper: Boudiaf et al., "Parameter-free Online Test-time Adaptation", CVPR 2022, arXiv 2201.05718: Laplacian-adjusted
maximum-likelihood estimation, solved by iterating Y <- softmax(log p + W Y) from Y = p; the affinity W of the normalised
features is a Gaussian kernel whose bandwidth is the mean distance to the k-th neighbour, or 1 for the k nearest.

Deviations: always ``iterations`` rounds, where the official code stops early once the energy rests: nothing waits for the
device. What is returned are the logarithms of Y up to a constant per row, logits like any others.

Batch: ``x`` (B, ...) standardised; ``length`` (B,) where rows are padded.

Known limits: made for streams in which neighbours share a class, and superb there; on shuffled streams worse than the
source model. A prediction depends on the batch it comes in; a batch of one is left as it is. Needs a linear classifier.
"""

from __future__ import annotations

from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_suite.adapter import Adapter
from ssl_suite.batch import Tags
from ssl_suite.nn.features import FeatureTap
from ssl_suite.nn.norm import Statistics


def affinity(features: Tensor, kind: Literal["rbf", "knn"], k: int) -> Tensor:
    """How much samples are to agree, (B, B), from features (B, D).

    Args:
        features: normalised here.
        kind: ``rbf``, exp(-d^2 / 2 s^2) with s the mean distance to the k-th nearest, each sample being its own first;
            ``knn``, 1 for the k nearest others of each row.
        k: neighbours, cut to the batch.
    """
    features = F.normalize(features, dim=1)
    distance = torch.cdist(features, features, compute_mode="donot_use_mm_for_euclid_dist")
    if kind == "knn":
        nearest = distance.topk(min(k + 1, len(features)), dim=1, largest=False).indices[:, 1:]
        return torch.zeros_like(distance).scatter_(1, nearest, 1.0)
    bandwidth = distance.topk(min(k, len(features)), dim=1, largest=False).values[:, -1].mean().clamp(min=1e-6)
    return (-distance.square() / (2.0 * bandwidth.square())).exp()


def smoothed(logits: Tensor, weights: Tensor, iterations: int) -> Tensor:
    """Logits (B, K) of the assignments that agree with their neighbours: log p + W Y after the last round.

    Args:
        logits: source predictions, (B, K).
        weights: affinities W, (B, B).
        iterations: rounds.
    """
    log_p = (logits.softmax(1) + 1e-10).log()
    out = log_p
    for _ in range(iterations):
        out = log_p + weights @ out.softmax(1)
    return out


class Lame(Adapter):
    """Laplacian smoothing of a batch's predictions; keeps no state.

    Args:
        model: standardised samples to logits, by a linear layer.
        affinity: ``rbf`` or ``knn``.
        k: neighbours that set the bandwidth, or that count.
        iterations: rounds of the fixed-point iteration.
        stats: batch-norm statistics.
        min_batch: rows from which batch statistics are trusted.
        autocast: dtype of forward passes.

    Raises:
        ValueError: an unknown affinity, a number out of range, or a model without linear classifier.
    """

    tags = Tags("Boudiaf et al., CVPR 2022, arXiv 2201.05718", "adaptation", batch="unlabeled", views=("clean",),
                target="class")
    assumes = "correlated"

    def __init__(self, model: nn.Module, *, affinity: Literal["rbf", "knn"] = "rbf", k: int = 5, iterations: int = 100,
                 stats: Statistics = "source", min_batch: int = 16, autocast: Literal["bfloat16"] | None = None) -> None:
        if affinity not in ("rbf", "knn"):
            raise ValueError(f"adapter.affinity={affinity!r} is not one of 'rbf', 'knn'")
        if k < 1 or iterations < 1:
            raise ValueError(f"adapter.k={k} and adapter.iterations={iterations} must be at least 1; 5 and 100 are usual")
        super().__init__(model, lambda m: [], partial(torch.optim.SGD, lr=0.0), stats=stats, min_batch=min_batch,
                         autocast=autocast)
        self.tap = FeatureTap(self.model)
        self.affinity, self.k, self.iterations = affinity, k, iterations

    def forward(self, x: Tensor, length: Tensor | None = None, stats: Statistics | None = None) -> Tensor:
        logits = super().forward(x, length, stats)
        features = self.tap.take(logits)
        return logits if len(x) == 1 else smoothed(logits, affinity(features, self.affinity, self.k), self.iterations)

    @torch.no_grad()
    def update(self, x: Tensor, length: Tensor | None, index: Tensor) -> tuple[Tensor, Tensor]:
        logits = self(x, length)
        return logits.new_zeros(()), logits
