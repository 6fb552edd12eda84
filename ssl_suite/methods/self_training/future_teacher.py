"""Learning from the future, FST: the teacher is moved by steps the student has not taken yet, and teaches the step it then takes.

Idea: a mean teacher averages past students only. Here the student steps ahead on trial, the teacher averages what comes of it, the
student goes back, and takes its real step under the teacher's better masks.

Paper: Du et al., "Learning from Future: A Novel Self-Training Framework for Semantic Segmentation", NeurIPS 2022, arXiv 2209.06993.
``way="deep"`` (FST-D) takes ``ahead`` trial steps one after the other on the batch of the real step, and the teacher moves after
each; ``way="wide"`` (FST-W) takes them side by side, each on a part of the batch of its own, and the teacher moves once, towards
their mean. One step ahead is plain FST, none a mean teacher. As in the official code for masks the teacher guesses in evaluation
mode, is what is judged, the fifth of the pixels with the highest entropy is dropped, and the student sees labelled and strong rows
in one forward.

Deviations: a trial leaves nothing behind, be it weights, batch-norm statistics or the optimizer's memory, where the official code
puts back the weights alone (``restore="weights"``). A wide batch is cut into ``ahead`` + 1 parts, where the official loader draws
more batches: raise data.batch_size accordingly. The teacher moves after the real step and not before the next trial: the same
sequence. The loss is the mean of the labelled and the unlabelled term, as in `FixMatchSegmentation`: half the paper's sum at
``lambda_u`` 1, which grows over training (``rampup``), where the official code starts with labels alone. Domain adaptation,
rare-class sampling and the feature distance of the paper are left out.

Batch: ``labeled`` with ``x`` (B, C, H, W), ``y`` (B, H, W), ``index``; ``unlabeled`` with ``x`` (M, C, H, W), ``index``; both with
``epoch`` where present.

Known limits: a deep step costs ``ahead`` + 1 ordinary ones; on the white blood cells of docs/results.md a mean teacher that takes
as many real steps is better. Gradients are neither accumulated nor clipped by the trainer, and float16, whose scaler would see
the trials, is refused; bfloat16 is not.
"""

from __future__ import annotations

from typing import Any, Literal, Self, Unpack

import torch
from torch import Tensor, nn

from ssl_suite.batch import Backbone, Batch, StepOutput, Tags
from ssl_suite.functional.ema import make_teacher
from ssl_suite.functional.pseudo_labels import sigmoid_ramp
from ssl_suite.functional.segmentation import pixel_loss
from ssl_suite.method import Training
from ssl_suite.methods.self_training.fixmatch_segmentation import FixMatchSegmentation, Mix
from ssl_suite.methods.self_training.policies import EntropyPercentile, Policy
from ssl_suite.nn.sharding import shard
from ssl_suite.nn.snapshot import capture, restore
from ssl_suite.views import Views


class FutureTeacher(FixMatchSegmentation):
    """Self-training with a teacher that averages future students.

    Args:
        backbone: one with maps.
        views: kind ``weak`` moves pictures and masks, ``strong`` comes on top of it.
        num_classes: number of classes.
        policy: which guesses count; all but the fifth of the highest entropy by default.
        lambda_u: weight of the unlabelled loss.
        mix: what is pasted into the strong views.
        rampup: share of training over which ``lambda_u`` grows from nearly nothing.
        ahead: steps on trial.
        way: one after the other (``deep``) or side by side (``wide``).
        restore: what a trial is undone in: ``all``, or ``weights``, the official code's.
        ema_decay: momentum of the teacher, in [0, 1].
        training: optimizer and schedule; see `Method`.

    Raises:
        ValueError: fewer than 0 steps, or an unknown ``way`` or ``restore``.
    """

    tags = Tags("Du et al., NeurIPS 2022, arXiv 2209.06993", "self_training", modalities=("images",), batch="semi", backbone="maps",
                views=("weak", "strong"), target="mask")
    teachers = {"teacher_backbone": "backbone", "teacher_head": "head"}

    def __init__(self, backbone: Backbone, views: Views, *, num_classes: int, policy: Policy | None = None, lambda_u: float = 1.0,
                 mix: Mix = "cutmix", rampup: float = 1.0, ahead: int = 3, way: Literal["deep", "wide"] = "deep",
                 restore: Literal["all", "weights"] = "all", ema_decay: float = 0.99, **training: Unpack[Training]) -> None:
        super().__init__(backbone, views, num_classes=num_classes, policy=policy or EntropyPercentile(), lambda_u=lambda_u, mix=mix,
                         **training)
        if ahead < 0 or way not in ("deep", "wide") or restore not in ("all", "weights"):
            raise ValueError(f"model.ahead={ahead} must be at least 0, model.way={way!r} 'deep' or 'wide', "
                             f"model.restore={restore!r} 'all' or 'weights'")
        self.teacher_backbone, self.teacher_head = make_teacher(self.backbone).eval(), make_teacher(self.head)
        self.ahead, self.way, self.undone, self.ema_decay = ahead, way, restore, ema_decay
        self.rampup = rampup
        self.automatic_optimization = False

    def momentum(self, step: int, total: int) -> float:
        return min(1.0 - 1.0 / (step + 1), self.ema_decay)

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        self.teacher_backbone.eval()
        return self

    def step(self, batch: Batch) -> StepOutput:
        labeled, unlabeled = batch["labeled"], batch["unlabeled"]
        if "pseudo" in unlabeled:
            raise ValueError("model=future_teacher has a teacher of its own and learns no other's masks; data.pseudo_masks=null")
        x, y = self.views.paired(labeled, "weak")
        weak, _ = self.views.paired({**unlabeled, "y": None}, "weak")
        with torch.no_grad():
            known, guess = self.taught(torch.cat([x, weak])).split([len(x), len(weak)])
        strong, *lesson = self.lesson(unlabeled, guess, known, y)
        maps = self.backbone.maps(torch.cat([x, strong]))
        logits, predicted = self.head(maps, x).split([len(x), len(strong)])
        loss_sup, loss_unsup = pixel_loss(logits, y), self.believed_loss(predicted, *lesson)
        logs = {"loss_sup": loss_sup.detach(), "loss_unsup": loss_unsup.detach(), "mask_ratio": lesson[-1].mean()}
        weight = self.lambda_u * sigmoid_ramp(self.progress, self.rampup)
        return StepOutput((loss_sup + weight * loss_unsup) / 2, logs, maps[: len(x)].detach().mean((2, 3)))

    def taught(self, x: Tensor) -> Tensor:
        """The teacher's logits (B, K, H, W) of standardised pictures."""
        return self.teacher_head(self.teacher_backbone.maps(x), x)

    @property
    def encoder(self) -> nn.Module:
        return self.teacher_backbone

    def logits(self, batch: Batch) -> Tensor:
        return self.taught(self.views(batch, "clean")[0])

    def configure_model(self) -> None:
        """Shard the weights as everywhere, but gather them for each step and not for all trials together."""
        if self.device_mesh is not None:
            shard(self, self.device_mesh["data_parallel"], ("step", "validation_step", "test_step"))

    def on_fit_start(self) -> None:
        """Refuse a precision that trials would spoil."""
        if self.trainer.precision == "16-mixed":
            raise ValueError("trainer.precision=16-mixed scales gradients, which trials would spoil; take bf16-mixed")

    # Trial and return ---------------------------------------------------------------------------------------------

    def training_step(self, batch: Batch, batch_idx: int) -> dict[str, Any]:
        optimizer: Any = self.optimizers()
        total = int(self.trainer.estimated_stepping_batches)
        self.progress, step = self.global_step / max(1, total), self.global_step + 1
        now, *later = [batch] * (self.ahead + 1) if self.way == "deep" else parts(batch, self.ahead + 1)
        self.look_ahead(later, optimizer.optimizer, step, total)
        out = self.descend(now, optimizer)
        self.update_teachers(step, total)
        self.lr_schedulers().step()  # type: ignore[union-attr]
        return {**self.report(out, batch), "loss": out.loss.detach()}

    def look_ahead(self, batches: list[Batch], optimizer: torch.optim.Optimizer, step: int, total: int) -> None:
        """Steps on trial: the teacher keeps what comes of them, the student nothing."""
        tensors = (*self.named_parameters(), *self.named_buffers())
        learnt = {name: t for name, t in tensors if name.split(".")[0] not in self.teachers}
        start = capture(learnt, optimizer)
        means = {name: torch.zeros_like(t) for name, t in learnt.items() if t.is_floating_point()}
        for batch in batches:
            self.descend(batch, optimizer)
            if self.way == "deep":
                self.update_teachers(step, total)
                continue
            for name, mean in means.items():
                mean.add_(learnt[name].detach(), alpha=1.0 / len(batches))
            self.go_back(learnt, optimizer, start)
        if self.way == "wide" and batches:
            with torch.no_grad():
                for name, mean in means.items():
                    learnt[name].copy_(mean)
            self.update_teachers(step, total)
        if batches:
            self.go_back(learnt, optimizer, start)

    def go_back(self, learnt: dict[str, Tensor], optimizer: torch.optim.Optimizer, start: dict[str, Any]) -> None:
        """Undo a trial."""
        if self.undone == "all":
            restore(learnt, optimizer, start)
            return
        with torch.no_grad():
            for name, p in self.named_parameters():
                if name in learnt:
                    p.copy_(start["tensors"][name])

    def descend(self, batch: Batch, optimizer: Any) -> StepOutput:
        """One step of the student; the trainer counts it only if the optimizer is the trainer's own."""
        optimizer.zero_grad()
        out = self.step(batch)
        self.manual_backward(out.loss)
        optimizer.step()
        return out


def parts(batch: Batch, n: int) -> list[Batch]:
    """A batch of labelled and unlabelled samples cut into ``n``.

    Raises:
        ValueError: a half cannot be cut evenly.
    """
    for half, rows in batch.items():
        if len(rows["index"]) % n:
            raise ValueError(f"model.way=wide cuts a batch into model.ahead + 1 = {n} parts, but it has {len(rows['index'])} "
                             f"{half} samples; change data.batch_size")
    cut = {half: {key: value.chunk(n) for key, value in rows.items()} for half, rows in batch.items()}
    return [{half: {key: chunks[i] for key, chunks in rows.items()} for half, rows in cut.items()} for i in range(n)]
