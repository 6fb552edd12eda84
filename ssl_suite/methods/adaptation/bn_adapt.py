"""BN-adapt: normalise by the statistics of the test data, learn nothing.

Idea: under a shift, the means and variances stored in batch norm are those of another distribution. Replace them by the
test batch's, or by a blend of both where a batch is too small to be trusted alone.

Paper: Schneider et al., "Improving robustness against common corruptions by covariate shift adaptation", NeurIPS 2020,
arXiv 2006.16971. ``alpha: 1`` is BN-1, the batch alone; below 1 the statistics are (1 - alpha) * source + alpha * batch
(BN-alpha; 0.1 is usual). ``track`` keeps the blend for the next batch, a moving average along the stream.

Deviations: the blend takes the biased variance of the batch, as batch norm itself does, so that ``alpha: 1`` and BN-1
agree; public implementations take the unbiased one. Batches below ``min_batch`` get the stored statistics when alpha is
1.

Batch: ``x`` (B, ...) standardised; ``length`` (B,) where rows are padded.

Known limits: only networks with batch norm. Worse than the source model on streams sorted by class and on shifts mixed
within a batch, since the statistics are those of the batch and not of the domain.
"""

from __future__ import annotations

from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn

from ssl_suite.adapter import Adapter
from ssl_suite.batch import Tags
from ssl_suite.nn.norm import BlendedStatistics, Statistics


class BatchNormAdapt(Adapter):
    """Batch norm by the batch, or by a blend of stored and batch statistics.

    Args:
        model: standardised samples to logits, with batch norm.
        alpha: share of the batch's statistics, in (0, 1].
        track: the blend becomes the stored statistics of the next batch; not with alpha 1.
        min_batch: rows from which a batch alone is trusted; of no meaning with alpha below 1.
        autocast: dtype of forward passes.

    Raises:
        ValueError: a value out of range, or a model without batch norm.
    """

    assumes = "shuffled"
    tags = Tags("Schneider et al., NeurIPS 2020, arXiv 2006.16971", "adaptation", batch="unlabeled", views=("clean",),
                target="class")

    def __init__(self, model: nn.Module, *, alpha: float = 1.0, track: bool = False, min_batch: int = 16,
                 autocast: Literal["bfloat16"] | None = None) -> None:
        if alpha == 0.0 or (track and alpha == 1.0):
            raise ValueError(f"adapter.alpha={alpha} with adapter.track={track} keeps nothing of the "
                             f"{'batch' if alpha == 0.0 else 'past'}; give adapter.alpha between 0 and 1, say 0.1")
        super().__init__(model, lambda m: [], partial(torch.optim.SGD, lr=0.0), min_batch=min_batch, autocast=autocast,
                         stats="batch" if alpha == 1.0 else "source")
        self.blend, self.track = BlendedStatistics(self.model, alpha), track

    def forward(self, x: Tensor, length: Tensor | None = None, stats: Statistics | None = None) -> Tensor:
        self.blend.active = stats is None and self.stats == "source"
        return super().forward(x, length, stats)

    @torch.no_grad()
    def update(self, x: Tensor, length: Tensor | None, index: Tensor) -> tuple[Tensor, Tensor]:
        self.blend.tracking = self.track
        try:
            logits = self(x, length)
        finally:
            self.blend.tracking = False
        return logits.new_zeros(()), logits
