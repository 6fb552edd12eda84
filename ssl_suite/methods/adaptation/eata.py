"""EATA: entropy minimisation on samples that are sure and new, held back where the source model was sensitive.

Idea: unsure samples give harmful gradients and samples like those before give nothing. Keep those with low entropy whose
prediction points away from the running mean of predictions, weight the surer ones higher, and pull parameters that
mattered on source data back to where they were.

Paper: Niu et al., "Efficient Test-Time Model Adaptation without Forgetting", ICML 2022, arXiv 2204.02610: entropy margin
E0 (equation 3), redundancy by the cosine with the moving mean of predictions (equations 4 and 5), Fisher penalty
(equations 8 and 9). Without `calibrate`, and so without the penalty, it is the paper's ETA.

Deviations: dropout stays off and only batch norm uses the batch; batches below ``min_batch`` are not learned from. The
moving mean starts at zero, whose cosine with anything is 0, so that the first batch is not filtered by it, as in the
official code. As there, Fisher weights are squared gradients of batch means, not of single samples.

Batch: ``x`` (B, ...) standardised; ``length`` (B,) where rows are padded.

Known limits: ``d_margin`` depends on the number of classes (0.4 for 10, 0.05 for 1000), ``fisher_weight`` likewise (1
and 2000). The penalty needs samples of the source's kind before deployment. Batch statistics fail as in `tent`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_suite.adapter import Adapter
from ssl_suite.batch import Tags
from ssl_suite.functional.adaptation import asking_gradient, entropy, gradients, hard_pseudo_label, mean_of_kept
from ssl_suite.nn.copies import TensorCopies
from ssl_suite.nn.features import linear_head
from ssl_suite.nn.norm import Selection, Statistics, select_parameters


class Eata(Adapter):
    """Weighted entropy of reliable, non-redundant samples plus a Fisher penalty; predicts first.

    Args:
        model: standardised samples to logits, by a linear layer.
        e0_factor: entropy below which a sample is reliable, as a share of ln K.
        d_margin: absolute cosine with the mean prediction below which a sample is new.
        momentum: share of the old mean prediction that stays.
        fisher_weight: weight of the penalty.
        fisher_samples: source samples that `calibrate` asks for; 0 turns the penalty off.
        optimizer: makes an optimizer from parameters; Adam with rate 1e-3 by default.
        steps: updates per batch.
        params: what learns.
        stats: batch-norm statistics.
        min_batch: rows from which batch statistics are trusted.
        autocast: dtype of forward passes.

    Raises:
        ValueError: a number out of range, or a model in which nothing is selected.
    """

    tags = Tags("Niu et al., ICML 2022, arXiv 2204.02610", "adaptation", batch="unlabeled", views=("clean",), target="class")
    mean_probs: Tensor

    def __init__(self, model: nn.Module, *, e0_factor: float = 0.4, d_margin: float = 0.4, momentum: float = 0.9,
                 fisher_weight: float = 1.0, fisher_samples: int = 2000,
                 optimizer: Callable[..., torch.optim.Optimizer] | None = None, steps: int = 1,
                 params: Selection = "norm_affine", stats: Statistics = "batch", min_batch: int = 16,
                 autocast: Literal["bfloat16"] | None = None) -> None:
        if steps < 1 or fisher_samples < 0:
            raise ValueError(f"adapter.steps={steps} must be at least 1, adapter.fisher_samples={fisher_samples} at least 0")
        if not (e0_factor > 0.0 and d_margin > 0.0 and 0.0 <= momentum < 1.0):
            raise ValueError(f"adapter.e0_factor={e0_factor} and adapter.d_margin={d_margin} must be positive, "
                             f"adapter.momentum={momentum} in [0, 1); the paper's are 0.4, 0.4 (10 classes) and 0.9")
        super().__init__(model, partial(select_parameters, kind=params),
                         optimizer or partial(torch.optim.Adam, lr=1e-3), stats=stats, min_batch=min_batch,
                         autocast=autocast)
        self.e0_factor, self.d_margin, self.momentum, self.steps = e0_factor, d_margin, momentum, steps
        self.fisher_weight, self.calibration = fisher_weight, fisher_samples
        weight = linear_head(self.model).weight
        self.register_buffer("mean_probs", torch.zeros(len(weight), device=weight.device))
        self.anchor = TensorCopies(self.learning)
        self.fisher = TensorCopies(torch.zeros_like(p) for p in self.learning)

    def calibrate(self, batches: Iterable[tuple[Tensor, Tensor | None]]) -> None:
        """Measure which parameters matter on samples like the source's; goes back to the source model first.

        Args:
            batches: standardised samples (B, ...) and their lengths (B,) or None; no labels.
        """
        with self.lock, torch.enable_grad():
            self.reset()
            sums, count = [torch.zeros_like(p) for p in self.learning], 0
            for x, length in batches:
                x = asking_gradient(x, self.model)
                loss = hard_pseudo_label(self(x, length)).mean()
                for s, g in zip(sums, gradients(loss, self.learning, x), strict=True):
                    s += g.square()
                count += 1
            for f, s in zip(self.fisher.tensors, sums, strict=True):
                f.copy_(s / max(count, 1))
            self.origin = {}  # what `reset` goes back to has the weights from now on

    def update(self, x: Tensor, length: Tensor | None, index: Tensor) -> tuple[Tensor, Tensor]:
        x = asking_gradient(x, self.model)
        for _ in range(self.steps):
            logits = self(x, length)
            h, e0 = entropy(logits), self.e0_factor * math.log(logits.shape[1])
            probs = logits.detach().softmax(1)
            keep = (h.detach() < e0) & (F.cosine_similarity(probs, self.mean_probs[None]).abs() < self.d_margin)
            loss = mean_of_kept(h * (e0 - h.detach()).exp(), keep) + self.fisher_weight * self.drift()
            self.used = keep.sum()
            self.remember(probs, keep)
            if self.used:  # momentum would move weights even without a gradient, so the host must know
                self.learn(loss)
        return loss, logits

    def drift(self) -> Tensor:
        """Squared distance to the source parameters, weighted by how much they mattered (equation 8), a scalar."""
        triples = zip(self.fisher.tensors, self.learning, self.anchor.tensors, strict=True)
        return torch.stack([(f * (p - a).square()).sum() for f, p, a in triples]).sum()

    def remember(self, probs: Tensor, keep: Tensor) -> None:
        """Move the mean prediction (K,) towards that of the kept rows of ``probs`` (B, K), where there are any."""
        mean = (probs * keep[:, None]).sum(0) / keep.sum().clamp(min=1)
        old = self.mean_probs
        moved = torch.where(old.sum() > 0, self.momentum * old + (1.0 - self.momentum) * mean, mean)
        self.mean_probs.copy_(torch.where(keep.any(), moved, old))
