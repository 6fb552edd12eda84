"""RoTTA: a class-balanced memory of the stream, a slow teacher, and batch norm that moves slowly.

Idea: when neighbours in a stream share a class, a batch is no sample of the domain. Keep a memory balanced over the
predicted classes, fresh and sure samples first; let the student learn from it under a teacher's labels, recent samples
counting more; move batch norm's statistics a little at a time.

Paper: Yuan, Xie and Li, "Robust Test-Time Adaptation in Dynamic Scenarios", CVPR 2023, arXiv 2303.13899. Memory of 64, an
update every 64 samples, statistics with momentum 0.05, teacher rate 0.001, Adam with rate 1e-3.

Deviations: the student sees what the data call ``view``, not the paper's own mixture. Two samples with exactly the same
score may leave the memory in another order. Samples of refused batches do not count towards the next update.

Batch: ``x`` (B, ...) standardised; ``length`` (B,) where rows are padded, for all batches or for none; ``index`` (B,)
seeds the views.

Known limits: the state, and so a saved file, holds samples of the stream. The first update comes after ``update_every``
samples, until when it predicts as the source model.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn

from ssl_suite.adapter import Adapter
from ssl_suite.batch import Tags
from ssl_suite.functional.adaptation import asking_gradient, entropy, soft_cross_entropy
from ssl_suite.functional.random import Draw, sample_keys
from ssl_suite.nn.copies import WeightCopies
from ssl_suite.nn.features import linear_head
from ssl_suite.nn.memory import SampleMemory, put
from ssl_suite.nn.norm import BlendedStatistics, Selection, Statistics, batch_norms, select_parameters
from ssl_suite.views import Views


class RoTTA(Adapter):
    """Cross-entropy with a slow teacher on a balanced memory; predicts with the teacher, first.

    Args:
        model: standardised samples to logits, by a linear layer.
        sample_shape: shape of one sample, the longest where rows are padded: the memory's.
        views: the data's views; ``view`` is drawn for the student. None shows it the samples themselves.
        view: kind of view.
        memory_size: samples kept.
        update_every: samples from one update to the next.
        alpha: share of the memory's statistics in those of batch norm at every update.
        nu: share of the student in the teacher at every update.
        lambda_t: weight of age in the score by which samples leave the memory.
        lambda_u: weight of entropy in it.
        seed: seed of the views, together with the number of samples seen.
        optimizer: makes an optimizer from parameters; Adam with rate 1e-3 by default.
        params: what learns.
        autocast: dtype of forward passes.

    Raises:
        ValueError: a number out of range, or a model in which nothing is selected.
    """

    tags = Tags("Yuan et al., CVPR 2023, arXiv 2303.13899", "adaptation", batch="unlabeled", views=("strong",),
                target="class")
    uncertainty: Tensor
    age: Tensor

    def __init__(self, model: nn.Module, *, sample_shape: Sequence[int], views: Views | None = None, view: str = "strong",
                 memory_size: int = 64, update_every: int = 64, alpha: float = 0.05, nu: float = 0.001,
                 lambda_t: float = 1.0, lambda_u: float = 1.0, seed: int = 0,
                 optimizer: Callable[..., torch.optim.Optimizer] | None = None, params: Selection = "norm_affine",
                 autocast: Literal["bfloat16"] | None = None) -> None:
        if memory_size < 1 or update_every < 1 or not 0.0 <= nu <= 1.0:
            raise ValueError(f"adapter.memory_size={memory_size} and adapter.update_every={update_every} must be at least 1, "
                             f"adapter.nu={nu} in [0, 1]; the paper's are 64, 64 and 0.001")
        super().__init__(model, partial(select_parameters, kind=params),
                         optimizer or partial(torch.optim.Adam, lr=1e-3), autocast=autocast)
        self.views, self.view = copy.deepcopy(views) or Views(), view if views is not None else "clean"
        self.update_every, self.nu, self.seed = update_every, nu, seed
        self.lambda_t, self.lambda_u = lambda_t, lambda_u
        head = linear_head(self.model)
        self.num_classes, at = head.out_features, head.weight.device
        self.blend = BlendedStatistics(self.model, alpha) if batch_norms(self.model) else None
        self.teacher = WeightCopies(self, "model.")
        self.memory = SampleMemory(memory_size, sample_shape, self.num_classes, at)
        self.register_buffer("uncertainty", torch.zeros(memory_size, device=at))
        self.register_buffer("age", torch.zeros(memory_size, device=at))

    def forward(self, x: Tensor, length: Tensor | None = None, stats: Statistics | None = None) -> Tensor:
        if self.blend is not None:
            self.blend.active = self.blend.tracking
        return super().forward(x, length, stats)

    def predict(self, x: Tensor, length: Tensor | None = None) -> Tensor:
        with self.lock, torch.no_grad():
            return self.teacher.run(self, x, length)

    def update(self, x: Tensor, length: Tensor | None, index: Tensor) -> tuple[Tensor, Tensor]:
        logits = self.predict(x, length)
        labels, uncertainty = logits.argmax(1), entropy(logits)
        valid = torch.full_like(labels, x.shape[-1]) if length is None else length
        samples, loss, count = self.memory.padded(x), logits.new_zeros(()), int(self.seen)
        for i in range(len(x)):
            self.remember(samples[i], valid[i], labels[i], uncertainty[i])
            if (count + i + 1) % self.update_every == 0:
                loss = self.rehearse(count + i + 1, length is not None)
        return loss, logits

    def remember(self, x: Tensor, length: Tensor, label: Tensor, uncertainty: Tensor) -> None:
        """Let one sample into the memory where its class has room, or in place of an older or less sure one."""
        memory, filled, own = self.memory, self.memory.filled, self.memory.labels == label
        below = own.sum() < len(memory) / self.num_classes
        rivals = torch.where(below, memory.crowded(), own)
        scores = self.score(self.age, self.uncertainty).masked_fill(~rivals, -torch.inf)
        room = below & ~filled.all()
        slot = torch.where(room, filled.int().argmin(), scores.argmax())
        accepted = room | (scores.max() > self.score(torch.zeros_like(uncertainty), uncertainty))
        memory.store(slot, accepted, x, length, label)
        put(self.uncertainty, slot, accepted, uncertainty)
        put(self.age, slot, accepted, torch.zeros_like(uncertainty))
        self.age += 1.0

    def score(self, age: Tensor, uncertainty: Tensor) -> Tensor:
        """How much samples deserve to leave: old and unsure ones more."""
        return self.lambda_t * (age / len(self.memory)).sigmoid() + self.lambda_u * uncertainty / math.log(self.num_classes)

    def rehearse(self, count: int, ragged: bool) -> Tensor:
        """One update on the memory, after ``count`` samples; returns the loss."""
        rows = self.memory.rows()
        x, length = self.memory.samples[rows], self.memory.lengths[rows] if ragged else None
        draw = Draw(sample_keys(self.seed, torch.full_like(rows, count), rows))
        weight = (-self.age[rows] / len(self.memory)).sigmoid()
        if self.blend is not None:
            self.blend.tracking = True
        try:
            with torch.no_grad():
                target = self.teacher.run(self, x, length).softmax(1)
            logits = self(asking_gradient(self.views.redraw(x, self.view, draw, length), self.model), length)
        finally:
            if self.blend is not None:
                self.blend.tracking = False
        loss = (soft_cross_entropy(logits, target) * weight).mean()
        self.learn(loss)
        self.teacher.follow(self, 1.0 - self.nu)
        return loss
