"""Doubly robust self-training: learn from a teacher's labels on everything, and take off the error that they make.

Idea: pseudo-labels for all samples use all the data and inherit the teacher's mistakes. On labelled samples those mistakes
can be seen: the loss on the true label minus that on the pseudo-label corrects them on average. A perfect teacher makes the
correction vanish, and all samples count; with a useless one it leaves training on the labels alone.

Paper: Zhu et al., "Doubly Robust Self-Training", NeurIPS 2023, arXiv 2306.00265. As in the official code for pictures the
correction's weight rises on a straight line over the student's training, and means over batches stand for those over the
data. ``mode`` has the two losses that the paper compares with.

Deviations: teacher and student are one run of two halves, as in `SelfDistillation`; the teacher names the clean picture. The
mean over all samples is taken on the unlabelled rows, which the data modules draw from labelled and unlabelled samples
alike. With ``teacher_share`` below 1 the teacher learns from that share of the labels only and the correction is made on the
others, which it has not seen, as the proof asks for; 1 is the paper's practice.

Batch: ``labeled`` with ``x`` (B, ...), ``y`` (B,), ``index``; ``unlabeled`` with ``x`` (M, ...), ``index``; both with
``epoch`` and ``length`` where present. Labelled and unlabelled rows of different T are padded to the longer.

Known limits: where the teacher has learnt the labels by heart, pseudo-labels and labels agree and nothing is corrected:
``teacher_accuracy``, on the rows of the correction, should stay below .99; above, a warning is given once. With few
rows the minus term is noisy, which is what the ramp is for. Label smoothing and mixing must touch all three terms alike, so
there are none.
"""

from __future__ import annotations

from typing import Any, Literal, Unpack

import torch
import torch.nn.functional as F
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from ssl_suite.batch import Backbone, Batch, StepOutput, Tags
from ssl_suite.functional.pseudo_labels import concat_rows, linear_ramp
from ssl_suite.functional.random import Draw, sample_keys
from ssl_suite.method import Training
from ssl_suite.methods.distillation.self_distillation import SelfDistillation
from ssl_suite.views import Views

SHARE_STREAM = 100
PERFECT = 0.99
"""Accuracy of a teacher on the rows of the correction above which there is next to nothing to correct."""


def doubly_robust_loss(pseudo: Tensor, labeled_true: Tensor, labeled_pseudo: Tensor, alpha: float = 1.0) -> Tensor:
    """Mean of the pseudo-label loss, corrected by what it gets wrong on labelled samples (equation 2, with the ramp alpha).

    Args:
        pseudo: losses on pseudo-labels of all samples, (N,).
        labeled_true: losses on the labels of labelled samples, (B,).
        labeled_pseudo: losses on the pseudo-labels of the same, (B,).
        alpha: weight of the correction.

    Returns:
        Scalar, below 0 at times.
    """
    return pseudo.mean() + alpha * (labeled_true.mean() - labeled_pseudo.mean())


class DoublyRobust(SelfDistillation):
    """A teacher on labels, then a student on its corrected pseudo-labels.

    Args:
        backbone: any backbone.
        views: kind ``weak`` is used for all samples.
        num_classes: number of classes.
        mode: ``doubly_robust``; or ``pseudo``, pseudo-labels alone; or ``mixture``, labels where there are any.
        teacher_share: share of the labelled samples that the teacher learns from, in (0, 1].
        start: share of the student's training at which the correction's weight leaves 0.
        end: share at which it reaches 1; equal to ``start`` for a jump.
        restart: ``new`` draws new weights for the student; ``same`` goes back to those the run started from.
        training: optimizer and schedule; see `Method`.

    Raises:
        ValueError: ``teacher_share`` or the ramp is out of range.
    """

    tags = Tags("Zhu et al., NeurIPS 2023, arXiv 2306.00265", "self_training", batch="semi", views=("weak",), target="class")

    def __init__(self, backbone: Backbone, views: Views, *, num_classes: int,
                 mode: Literal["doubly_robust", "pseudo", "mixture"] = "doubly_robust", teacher_share: float = 1.0,
                 start: float = 0.0, end: float = 1.0, restart: Literal["new", "same"] = "new",
                 **training: Unpack[Training]) -> None:
        super().__init__(backbone, views, num_classes=num_classes, generations=2, restart=restart, **training)
        if not 0.0 < teacher_share <= 1.0 or not 0.0 <= start <= end:
            raise ValueError(f"model.teacher_share={teacher_share} must lie in (0, 1], and the ramp needs "
                             f"0 <= model.start={start} <= model.end={end}")
        self.mode, self.teacher_share, self.start, self.end = mode, teacher_share, start, end
        self.accuracies: list[Tensor] = []
        self.judged = mode != "doubly_robust"  # the other modes correct nothing

    def taught(self, index: Tensor) -> Tensor:
        """1.0 for labelled samples that the teacher learns from, 0.0 for those kept from it, (B,); the same at all times."""
        keys = sample_keys(self.views.seed, torch.zeros_like(index), index, SHARE_STREAM)
        return Draw(keys).chance(self.teacher_share).float()

    def pseudo_labels(self, batch: Batch) -> Tensor:
        """The teacher's classes of clean samples, (B,)."""
        with torch.no_grad():
            return self.teacher["head"](self.teacher["backbone"](self.views(batch, "clean")[0], batch.get("length"))).argmax(1)

    def step(self, batch: Batch) -> StepOutput:
        labeled, unlabeled, share = batch["labeled"], batch["unlabeled"], self.teacher_share
        taught = self.taught(labeled["index"])
        if not self.current:
            h = self.backbone(self.views(labeled, "weak")[0], labeled.get("length"))
            loss = (F.cross_entropy(self.head(h), labeled["y"], reduction="none") * taught).mean() / share
            return StepOutput(loss, features=h.detach())
        views = [*self.views(labeled, "weak"), *self.views(unlabeled, "weak")]
        lengths = [part.get("length") for part in (labeled, unlabeled)]
        h = self.backbone(*concat_rows(views, lengths))
        ours, others = self.head(h).split([len(view) for view in views])
        guess, y = self.pseudo_labels(labeled), labeled["y"]
        pseudo = F.cross_entropy(others, self.pseudo_labels(unlabeled), reduction="none")
        # Rows kept from the teacher stand for all labelled ones, so their losses weigh as much more as there are fewer.
        weight = torch.ones_like(taught) if share == 1.0 else (1.0 - taught) / (1.0 - share)
        true, wrong = (F.cross_entropy(ours, target, reduction="none") for target in (y, guess))
        if self.mode == "doubly_robust":
            loss = doubly_robust_loss(pseudo, true * weight, wrong * weight, self.alpha())
        else:
            loss = pseudo.mean() if self.mode == "pseudo" else torch.cat([true, pseudo]).mean()
        logs = {"loss_pseudo": pseudo.detach().mean(), "loss_correction": ((true - wrong) * weight).detach().mean(),
                "teacher_accuracy": ((guess == y) * weight).sum() / weight.sum().clamp(min=1.0)}
        return StepOutput(loss, logs, h[: len(y)].detach())

    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_idx: int) -> None:
        if not self.judged and "teacher_accuracy" in outputs["logs"]:
            self.accuracies.append(outputs["logs"]["teacher_accuracy"])

    def on_train_epoch_end(self) -> None:
        """Judge the teacher once, at the end of the student's first epoch, so that no step waits for the device."""
        if self.accuracies:
            self.judged, accuracy = True, float(torch.stack(self.accuracies).mean())
            self.accuracies.clear()
            if accuracy > PERFECT:
                rank_zero_warn(f"the teacher is right on {accuracy:.1%} of the labelled samples, so the correction vanishes and "
                               "its pseudo-labels are taken as they are; keep labels from it with model.teacher_share=0.5, or "
                               "regularise it (optimizer.weight_decay, fewer trainer.max_epochs)")

    def alpha(self) -> float:
        """Weight of the correction at this point of the student's training."""
        return linear_ramp(2.0 * self.progress - 1.0, self.start, self.end)
