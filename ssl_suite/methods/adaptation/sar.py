"""SAR: entropy minimisation towards flat minima, on reliable samples, with a way back when it collapses.

Idea: samples with large gradients break online entropy minimisation on single samples, mixed shifts and networks without
batch norm. Leave out unsure samples, take the gradient at the worst nearby weights (sharpness-aware), and go back to the
source model when the loss becomes suspiciously small.

Paper: Niu et al., "Towards Stable Test-Time Adaptation in Dynamic Wild World", ICLR 2023, arXiv 2302.12400: reliable
samples (equation 2), sharpness-aware entropy with radius 0.05 (equations 3 and 4), recovery below e_m = 0.2.

Deviations: e_m was set for 1000 classes and is scaled by ln K / ln 1000 here. The paper leaves out the last stage of a
ResNet, or the last three blocks and the final norm of a ViT, by name; here the top quarter of the normalisation layers,
which is the same on a ViT-B. A recovery restarts the moving mean of the loss too, which the official code carries on. An
update without a reliable sample is left out whole. Only batch norm uses the batch; batches below ``min_batch`` are not
learned from, unless ``stats: source``. The rate is TENT's for ImageNet.

Batch: ``x`` (B, ...) standardised; ``length`` (B,) where rows are padded.

Known limits: two forward and backward passes per batch. Made for group and layer norm, with ``stats: source`` for single
samples; with batch norm the failures of batch statistics remain.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn

from ssl_suite.adapter import Adapter
from ssl_suite.batch import Tags
from ssl_suite.functional.adaptation import asking_gradient, entropy, gradients, mean_of_kept
from ssl_suite.nn.norm import Statistics, select_lower_norms


class Sar(Adapter):
    """Sharpness-aware entropy minimisation over the lower normalisation layers; predicts first.

    Args:
        model: standardised samples to logits.
        e0_factor: entropy below which a sample is reliable, as a share of ln K.
        rho: radius of the neighbourhood in which the worst weights are sought.
        reset_below: mean loss below which the source model comes back, for 1000 classes; 0 never.
        momentum: share of the old mean loss that stays.
        skip_top: share of the normalisation layers, from the top, that does not learn.
        optimizer: makes an optimizer from parameters; SGD with rate 2.5e-4 and momentum 0.9 by default.
        stats: batch-norm statistics.
        min_batch: rows from which batch statistics are trusted.
        autocast: dtype of forward passes.

    Raises:
        ValueError: a number out of range, or a model in which nothing is selected.
    """

    tags = Tags("Niu et al., ICLR 2023, arXiv 2302.12400", "adaptation", batch="unlabeled", views=("clean",), target="class")
    mean_loss: Tensor

    def __init__(self, model: nn.Module, *, e0_factor: float = 0.4, rho: float = 0.05, reset_below: float = 0.2,
                 momentum: float = 0.9, skip_top: float = 0.25,
                 optimizer: Callable[..., torch.optim.Optimizer] | None = None, stats: Statistics = "batch",
                 min_batch: int = 16, autocast: Literal["bfloat16"] | None = None) -> None:
        if not (e0_factor > 0.0 and rho >= 0.0 and 0.0 <= momentum < 1.0):
            raise ValueError(f"adapter.e0_factor={e0_factor} must be positive, adapter.rho={rho} at least 0 and "
                             f"adapter.momentum={momentum} in [0, 1); the paper's are 0.4, 0.05 and 0.9")
        super().__init__(model, partial(select_lower_norms, skip_top=skip_top),
                         optimizer or partial(torch.optim.SGD, lr=2.5e-4, momentum=0.9), stats=stats,
                         min_batch=min_batch, autocast=autocast)
        self.e0_factor, self.rho, self.reset_below, self.momentum = e0_factor, rho, reset_below, momentum
        self.register_buffer("mean_loss", torch.tensor(torch.inf, device=self.learning[0].device))  # inf: nothing yet

    def update(self, x: Tensor, length: Tensor | None, index: Tensor) -> tuple[Tensor, Tensor]:
        x = asking_gradient(x, self.model)
        logits = self(x, length)
        h, e0 = entropy(logits), self.e0_factor * math.log(logits.shape[1])
        keep = h.detach() < e0
        uphill = gradients(mean_of_kept(h, keep), self.learning, x)
        here = [p.detach().clone() for p in self.learning]
        norm = torch.stack([g.norm() for g in uphill]).norm()
        with torch.no_grad():
            for p, g in zip(self.learning, uphill, strict=True):
                p.add_(g * (self.rho / (norm + 1e-12)))
        worse = entropy(self(x, length))
        keep = keep & (worse.detach() < e0)
        loss = mean_of_kept(worse, keep)
        self.optimizer.zero_grad()
        loss.backward()
        with torch.no_grad():
            for p, old in zip(self.learning, here, strict=True):
                p.copy_(old)
            blended = self.momentum * self.mean_loss + (1.0 - self.momentum) * loss
            mean_loss = torch.where(self.mean_loss.isinf(), loss, blended)
            floor = self.reset_below * math.log(logits.shape[1]) / math.log(1000)
            self.used = keep.sum()
            used, collapsed = torch.stack([self.used > 0, mean_loss < floor]).tolist()  # the host must know both
        if used:
            self.optimizer.step()
            self.mean_loss.copy_(mean_loss)
            if collapsed:
                self.reset()
        return loss, logits
