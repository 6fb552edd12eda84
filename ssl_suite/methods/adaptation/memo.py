"""MEMO: for one sample, make the mean prediction over its augmented views sure, then predict it and forget.

Idea: a good network gives all views of a sample the same, sure answer. Take a gradient step on the entropy of the mean
prediction over views of the one sample, with all parameters; predict the sample; go back to the source model.

Paper: Zhang, Levine and Finn, "MEMO: Test Time Robustness via Adaptation and Augmentation", NeurIPS 2022, arXiv
2110.09506. 32 views, one step of SGD with rate 0.005. Batch norm takes (1 - alpha) * source + alpha * statistics of the
views.

Deviations: views are what the data call ``view``, where the paper has AugMix. The default of ``alpha`` is the general 0.1
of blended statistics. A non-finite sample undoes the whole batch it came in.

Batch: ``x`` (B, ...) standardised, worked on one by one; ``length`` (B,) where rows are padded; ``index`` (B,) seeds the
views.

Known limits: 32 views forward and backward for every sample. Nothing is learned from the stream; views that change the
class do harm.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn

from ssl_suite.adapter import Adapter
from ssl_suite.batch import Tags
from ssl_suite.functional.adaptation import asking_gradient
from ssl_suite.functional.random import Draw, sample_keys
from ssl_suite.nn.norm import BlendedStatistics, Selection, Statistics, batch_norms, select_parameters
from ssl_suite.nn.snapshot import capture, restore
from ssl_suite.views import Views


def marginal_entropy(logits: Tensor) -> Tensor:
    """Entropy of the mean of the softmaxes of logits (B, K), a scalar."""
    log_mean = logits.log_softmax(1).logsumexp(0) - math.log(len(logits))
    return -(log_mean.exp() * log_mean).sum()


class Memo(Adapter):
    """Entropy of the mean prediction over views of one sample; adapts first, and starts from the source every time.

    Args:
        model: standardised samples to logits.
        views: the data's views; ``view`` is drawn for every copy. None makes plain copies.
        view: kind of view.
        num_augmentations: views of a sample.
        steps: gradient steps per sample.
        alpha: share of the views' statistics in batch norm; 0 keeps the stored ones.
        seed: seed of the views, together with each sample's index.
        optimizer: makes an optimizer from parameters; SGD with rate 0.005 by default.
        params: what learns.
        autocast: dtype of forward passes.

    Raises:
        ValueError: a number out of range, or a model in which nothing is selected.
    """

    tags = Tags("Zhang et al., NeurIPS 2022, arXiv 2110.09506", "adaptation", batch="unlabeled", views=("weak",),
                target="class")
    order = "adapt_first"

    def __init__(self, model: nn.Module, *, views: Views | None = None, view: str = "weak", num_augmentations: int = 32,
                 steps: int = 1, alpha: float = 0.1, seed: int = 0,
                 optimizer: Callable[..., torch.optim.Optimizer] | None = None, params: Selection = "all",
                 autocast: Literal["bfloat16"] | None = None) -> None:
        if steps < 1 or num_augmentations < 1:
            raise ValueError(f"adapter.steps={steps} and adapter.num_augmentations={num_augmentations} must be at least 1; "
                             "the paper's are 1 and 32")
        super().__init__(model, partial(select_parameters, kind=params),
                         optimizer or partial(torch.optim.SGD, lr=0.005), autocast=autocast)
        self.views, self.view = copy.deepcopy(views) or Views(), view if views is not None else "clean"
        self.num_augmentations, self.steps, self.seed = num_augmentations, steps, seed
        self.blend = BlendedStatistics(self.model, alpha) if alpha and batch_norms(self.model) else None

    def forward(self, x: Tensor, length: Tensor | None = None, stats: Statistics | None = None) -> Tensor:
        if self.blend is not None:
            self.blend.active = stats is None
        return super().forward(x, length, stats)

    def predict(self, x: Tensor, length: Tensor | None = None) -> Tensor:
        with self.lock, torch.no_grad():  # one by one, since blended statistics must not mix samples
            rows = range(len(x))
            return torch.cat([self(x[i : i + 1], None if length is None else length[i : i + 1]) for i in rows])

    def update(self, x: Tensor, length: Tensor | None, index: Tensor) -> tuple[Tensor, Tensor]:
        losses, logits = [], []
        learning = {str(i): p for i, p in enumerate(self.learning)}
        source = capture(learning, self.optimizer)
        for i in range(len(x)):
            row, valid = x[i : i + 1], None if length is None else length[i : i + 1]
            losses.append(self.adapt_row(row, valid, index[i : i + 1]))
            logits.append(self.predict(row, valid))
            restore(learning, self.optimizer, source)
        return torch.stack(losses).mean(), torch.cat(logits)

    def adapt_row(self, x: Tensor, length: Tensor | None, index: Tensor) -> Tensor:
        """Gradient steps for one sample (1, ...); returns the last loss."""
        n = self.num_augmentations
        copies, valid = x.repeat_interleave(n, 0), None if length is None else length.repeat_interleave(n)
        for step in range(self.steps):
            draw = Draw(sample_keys(self.seed, torch.full_like(index, step), index)).copies(n)
            view = asking_gradient(self.views.redraw(copies, self.view, draw, valid), self.model)
            loss = marginal_entropy(self(view, valid))
            self.learn(loss)
        return loss.detach()
