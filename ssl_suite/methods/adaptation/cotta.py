"""CoTTA: learn from a slow, augmentation-averaged teacher, and now and then put weights back.

Idea: in a world that keeps changing, errors add up and the source is forgotten. A teacher that is the moving average of
the student gives better labels, still better averaged over augmented views where the source model is unsure; and a random
few weights return to the source's after every step.

Paper: Wang et al., "Continual Test-Time Domain Adaptation", CVPR 2022, arXiv 2203.13591. Teacher momentum 0.999, 32
views, confidence threshold 0.92, restoring probability 0.01, Adam with rate 1e-3, all parameters: the setting for CIFAR-10.

Deviations: views are what the data call ``view``, not the paper's own mixture of colour and affine changes. They are
computed only where they are used. Weights to restore are drawn from the seed and the number of samples seen, so that a
run repeats. Dropout stays off; batches below ``min_batch`` are not learned from.

Batch: ``x`` (B, ...) standardised; ``length`` (B,) where rows are padded; ``index`` (B,) seeds the views.

Known limits: three sets of weights and up to 35 forward passes per batch, outside most latency budgets. Worse than
the source model where labels are correlated.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn

from ssl_suite.adapter import Adapter
from ssl_suite.batch import Tags
from ssl_suite.functional.adaptation import asking_gradient, soft_cross_entropy
from ssl_suite.functional.random import Draw, sample_keys
from ssl_suite.nn.copies import TensorCopies, WeightCopies
from ssl_suite.nn.norm import Selection, Statistics, select_parameters
from ssl_suite.views import Views

RESTORE_STREAM = 100


class CoTTA(Adapter):
    """Cross-entropy with an averaged teacher over all parameters; predicts with the teacher, first.

    Args:
        model: standardised samples to logits.
        views: the data's views; ``view`` is drawn anew for every copy. None makes plain copies.
        view: kind of view.
        num_augmentations: views averaged.
        confidence: mean confidence of the source model below which views are averaged.
        momentum_teacher: share of the old teacher that stays at every step.
        restore_prob: probability of a weight to return to the source's after a step.
        seed: seed of what is drawn, together with each sample's index.
        optimizer: makes an optimizer from parameters; Adam with rate 1e-3 by default.
        params: what learns.
        stats: batch-norm statistics.
        min_batch: rows from which batch statistics are trusted.
        autocast: dtype of forward passes.

    Raises:
        ValueError: a number out of range, or a model in which nothing is selected.
    """

    tags = Tags("Wang et al., CVPR 2022, arXiv 2203.13591", "adaptation", batch="unlabeled", views=("weak",), target="class")

    def __init__(self, model: nn.Module, *, views: Views | None = None, view: str = "weak", num_augmentations: int = 32,
                 confidence: float = 0.92, momentum_teacher: float = 0.999, restore_prob: float = 0.01, seed: int = 0,
                 optimizer: Callable[..., torch.optim.Optimizer] | None = None, params: Selection = "all",
                 stats: Statistics = "batch", min_batch: int = 16, autocast: Literal["bfloat16"] | None = None) -> None:
        if num_augmentations < 1:
            raise ValueError(f"adapter.num_augmentations={num_augmentations} must be at least 1; the paper's is 32")
        shares = {"confidence": confidence, "momentum_teacher": momentum_teacher, "restore_prob": restore_prob}
        for key, value in shares.items():
            if not 0.0 <= value <= 1.0:
                raise ValueError(f"adapter.{key}={value} must lie in [0, 1]; leave it out for the paper's")
        super().__init__(model, partial(select_parameters, kind=params),
                         optimizer or partial(torch.optim.Adam, lr=1e-3), stats=stats, min_batch=min_batch,
                         autocast=autocast)
        self.views, self.view = copy.deepcopy(views) or Views(), view if views is not None else "clean"
        self.num_augmentations, self.confidence, self.seed = num_augmentations, confidence, seed
        self.momentum_teacher, self.restore_prob = momentum_teacher, restore_prob
        self.teacher, self.anchor = WeightCopies(self, "model."), WeightCopies(self, "model.")
        self.source = TensorCopies(self.learning)

    def predict(self, x: Tensor, length: Tensor | None = None) -> Tensor:
        with self.lock, torch.no_grad():
            return self.teacher.run(self, x, length)

    def update(self, x: Tensor, length: Tensor | None, index: Tensor) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            target = self.teacher.run(self, x, length)
            if self.anchor.run(self, x, length).softmax(1).amax(1).mean() < self.confidence:  # one wait saves 32 passes
                target = self.averaged(x, length, index)
        loss = soft_cross_entropy(self(asking_gradient(x, self.model), length), target.softmax(1)).mean()
        self.learn(loss)
        self.teacher.follow(self, self.momentum_teacher)
        self.restore_some()
        return loss, target

    def averaged(self, x: Tensor, length: Tensor | None, index: Tensor) -> Tensor:
        """Mean of the teacher's logits over augmented views, (B, K)."""
        total: Tensor | float = 0.0
        for i in range(self.num_augmentations):
            draw = Draw(sample_keys(self.seed, torch.zeros_like(index), index, i))
            total = total + self.teacher.run(self, self.views.redraw(x, self.view, draw, length), length)
        return torch.as_tensor(total) / self.num_augmentations

    @torch.no_grad()
    def restore_some(self) -> None:
        """Every weight, with a small probability, becomes the source's again."""
        draw = Draw(sample_keys(self.seed, self.seen[None], torch.zeros_like(self.seen[None]), RESTORE_STREAM))
        for p, source in zip(self.learning, self.source.tensors, strict=True):
            p.copy_(torch.where(draw.chance(self.restore_prob, *p.shape)[0], source, p))
