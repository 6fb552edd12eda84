"""T3A: replace the linear classifier by class means of the surest features met so far.

Idea: a new domain moves the clusters of the features; the classifier can follow without a gradient. Keep, for each
class, the features that were predicted as it with the lowest entropy, beginning with the classifier's own weights, and
classify by their normalised mean direction.

Paper: Iwasawa and Matsuo, "Test-Time Classifier Adjustment Module for Model-Agnostic Domain Generalization", NeurIPS
2021. M, the number of features kept per class, was chosen there from 1, 5, 20, 50, 100 and all.

Deviations: M is a number, so that the memory is bounded; there is no "all". Of several features with the same entropy the
one met first is kept.

Batch: ``x`` (B, ...) standardised; ``length`` (B,) where rows are padded.

Known limits: needs a linear classifier. Its bias is dropped, so that the first prediction is not quite the source
model's. Where the source is mostly wrong the features kept are wrong too.
"""

from __future__ import annotations

from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_suite.adapter import Adapter
from ssl_suite.batch import Tags
from ssl_suite.functional.adaptation import entropy
from ssl_suite.nn.features import FeatureTap
from ssl_suite.nn.norm import Statistics


class T3A(Adapter):
    """Prototypes of low-entropy features; learns from a batch before it predicts it.

    Args:
        model: standardised samples to logits, by a linear layer.
        filter_k: features M kept per class.
        stats: batch-norm statistics.
        min_batch: rows from which batch statistics are trusted.
        autocast: dtype of forward passes.

    Raises:
        ValueError: no feature is to be kept, or the model has no linear classifier.
    """

    tags = Tags("Iwasawa and Matsuo, NeurIPS 2021", "adaptation", batch="unlabeled", views=("clean",), target="class")
    order = "adapt_first"
    supports: Tensor
    entropies: Tensor

    def __init__(self, model: nn.Module, *, filter_k: int = 100, stats: Statistics = "source", min_batch: int = 16,
                 autocast: Literal["bfloat16"] | None = None) -> None:
        if filter_k < 1:
            raise ValueError(f"adapter.filter_k={filter_k} must be at least 1; 100 is usual")
        super().__init__(model, lambda m: [], partial(torch.optim.SGD, lr=0.0), stats=stats, min_batch=min_batch,
                         autocast=autocast)
        self.tap = FeatureTap(self.model)
        weight = self.tap.head.weight.detach().float()
        self.register_buffer("supports", weight.new_zeros(len(weight), filter_k, weight.shape[1]))
        self.register_buffer("entropies", weight.new_full((len(weight), filter_k), torch.inf))  # inf: an empty place
        with torch.no_grad():
            self.remember(weight, self.tap.head(self.tap.head.weight).float())

    def forward(self, x: Tensor, length: Tensor | None = None, stats: Statistics | None = None) -> Tensor:
        return self.classify(self.tap.take(super().forward(x, length, stats)))

    @torch.no_grad()
    def update(self, x: Tensor, length: Tensor | None, index: Tensor) -> tuple[Tensor, Tensor]:
        logits = super().forward(x, length)
        features = self.tap.take(logits)
        self.remember(features, logits)
        return entropy(logits).mean(), self.classify(features)

    def classify(self, features: Tensor) -> Tensor:
        """Logits (B, K) of features (B, D): products with the normalised sums of the normalised supports."""
        filled = self.entropies.isfinite()[..., None]
        prototypes = F.normalize((F.normalize(self.supports, dim=2) * filled).sum(1), dim=1)
        return features @ prototypes.T

    def remember(self, features: Tensor, logits: Tensor) -> None:
        """Let features (B, D), by their source logits (B, K), compete for the places of the class they are put in."""
        k, m = self.entropies.shape
        mine = logits.argmax(1) == torch.arange(k, device=logits.device)[:, None]
        candidates = torch.cat([self.entropies, torch.where(mine, entropy(logits), torch.inf)], dim=1)
        lowest, place = candidates.sort(dim=1, stable=True)
        lowest, place = lowest[:, :m], place[:, :m, None]
        old = self.supports.gather(1, place.clamp(max=m - 1).expand(-1, -1, features.shape[1]))
        new = features[(place[..., 0] - m).clamp(min=0)]
        self.supports.copy_(torch.where(place < m, old, new))
        self.entropies.copy_(lowest)
