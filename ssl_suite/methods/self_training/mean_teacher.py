"""Mean Teacher: the network should say of every sample what its own running average says of another view.

Idea: averaged weights predict better than the current ones, so their predictions are worth following, labels or not.

Paper: Tarvainen and Valpola, "Mean teachers are better role models", NeurIPS 2017, arXiv 1703.01780. As in the official
code the consistency is taken on labelled and unlabelled rows alike, averaged over rows and classes; the teacher's
momentum is min(1 - 1/(t + 1), ``ema_decay``) after t optimizer steps; the ramp is exp(-5 (1 - t)^2); and the teacher
normalises by its own batch.

Deviations: the labelled loss is the mean over labelled rows. The official code divides the sum by all rows, labelled or
not, so that its ``weight`` of 100 weighs, against the labelled loss, (B + M)/B times as much as the same number here. The
official ramp of 5 epochs is given as a share of the run, ``rampup``. BatchNorm's running statistics of the teacher
are copied from the student. The official code's second head, an option, is left out.

Batch: ``labeled`` with ``x`` (B, ...), ``y`` (B,), ``index``; ``unlabeled`` with ``x`` (M, ...), ``index``; both with
``epoch`` and ``length`` where present. Labelled and unlabelled rows of different T are padded to the longer.

Known limits: the weight of 100 belongs to short ramps and mild views; too much of it too early, and the network follows
its own random start. The ramp follows the trainer: a step taken outside of one uses the weight at the start of the run.
"""

from __future__ import annotations

from typing import Unpack

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_suite.batch import Backbone, Batch, StepOutput, Tags
from ssl_suite.functional.ema import make_teacher
from ssl_suite.functional.pseudo_labels import concat_rows, probability_mse, sigmoid_ramp
from ssl_suite.method import Method, Training
from ssl_suite.views import Views


class MeanTeacher(Method):
    """Supervised training plus agreement with the averaged network on another view.

    Args:
        backbone: any backbone.
        views: kind ``weak`` is drawn twice for every sample.
        num_classes: number of classes.
        weight: weight of the consistency at the end of the ramp.
        rampup: share of the run in which the weight rises, in [0, 1].
        ema_decay: momentum of the teacher, in [0, 1].
        training: optimizer and schedule; see `Method`.

    Raises:
        ValueError: ``rampup`` lies outside [0, 1].
    """

    tags = Tags("Tarvainen and Valpola, NeurIPS 2017, arXiv 1703.01780", "self_training", batch="semi",
                views=("weak", "weak"), target="class")
    teachers = {"teacher_backbone": "backbone", "teacher_head": "head"}

    def __init__(self, backbone: Backbone, views: Views, *, num_classes: int, weight: float = 100.0, rampup: float = 0.1,
                 ema_decay: float = 0.999, **training: Unpack[Training]) -> None:
        super().__init__(backbone, views, **training)
        if not 0.0 <= rampup <= 1.0:
            raise ValueError(f"model.rampup={rampup} is a share of the run and must lie in [0, 1]")
        self.head = nn.Linear(backbone.num_features, num_classes)
        self.teacher_backbone, self.teacher_head = make_teacher(self.backbone), make_teacher(self.head)
        self.weight, self.rampup, self.ema_decay = weight, rampup, ema_decay

    def momentum(self, step: int, total: int) -> float:
        return min(1.0 - 1.0 / (step + 1), self.ema_decay)

    def step(self, batch: Batch) -> StepOutput:
        labeled, unlabeled = batch["labeled"], batch["unlabeled"]
        pairs = zip(*(self.views(part, *self.tags.views) for part in (labeled, unlabeled)), strict=True)
        lengths = [labeled.get("length"), unlabeled.get("length")]
        student, teacher = (concat_rows(pair, lengths) for pair in pairs)
        h = self.backbone(*student)
        logits = self.head(h)
        with torch.no_grad():
            target = self.teacher_head(self.teacher_backbone(*teacher))

        size = len(labeled["y"])
        loss_sup, loss_unsup = F.cross_entropy(logits[:size], labeled["y"]), probability_mse(logits, target)
        loss = loss_sup + self.weight * sigmoid_ramp(self.progress, self.rampup) * loss_unsup
        return StepOutput(loss, {"loss_sup": loss_sup.detach(), "loss_unsup": loss_unsup.detach()}, h[:size].detach())

    @property
    def encoder(self) -> nn.Module:
        return self.teacher_backbone

    def logits(self, batch: Batch) -> Tensor:
        return self.teacher_head(self(batch))
