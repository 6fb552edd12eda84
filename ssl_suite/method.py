"""`Method`: the base of everything that is trained. step -> log -> optimizer -> teachers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, ClassVar, TypedDict

import lightning as L
import torch
from torch import Tensor, nn

from ssl_suite.batch import Backbone, Batch, StepOutput, Tags
from ssl_suite.functional.ema import update_teacher
from ssl_suite.functional.segmentation import iou_sums, to_target
from ssl_suite.nn.sharding import shard
from ssl_suite.optim import Cosine, parameter_groups
from ssl_suite.optim.schedules import Schedule
from ssl_suite.views import Views


class Training(TypedDict, total=False):
    """How a method is optimised; every method passes these keywords on to `Method`.

    Keys:
        optimizer: makes an optimizer from parameter groups; AdamW with rate 1e-3 and decay 0.05 by default.
        schedule: factor on the rate; a cosine with 10 % warm-up by default.
    """

    optimizer: Callable[..., torch.optim.Optimizer]
    schedule: Schedule


class Method(L.LightningModule):
    """A learning method: a loss over batches, composed with a backbone, views, an optimizer and a schedule.

    A subclass states `tags`, implements `step` and, where it predicts classes or masks, `logits`. Teachers are declared in
    `teachers` and moved here, once per optimizer step, however many batches were accumulated.

    Args:
        backbone: network under training; see `ssl_suite.backbones`.
        views: what the data set means by each kind of view.
        optimizer: makes an optimizer from parameter groups.
        schedule: factor on the learning rate.

    Attributes:
        progress: share of the run that is done, in [0, 1), for weights with a ramp; 0 outside of a trainer.
    """

    tags: ClassVar[Tags]
    teachers: ClassVar[Mapping[str, str]] = {}
    """Attribute of each teacher -> attribute of its student."""

    def __init__(self, backbone: Backbone, views: Views, *, optimizer: Callable[..., torch.optim.Optimizer] | None = None,
                 schedule: Schedule | None = None) -> None:
        super().__init__()
        self.backbone: Backbone = backbone
        self.views = views
        self.make_optimizer = optimizer or partial(torch.optim.AdamW, lr=1e-3, weight_decay=0.05)
        self.schedule = schedule or Cosine()
        self.progress = 0.0

    def step(self, batch: Batch) -> StepOutput:
        """Loss of one batch. Nothing in here may wait for the device."""
        raise NotImplementedError

    def logits(self, batch: Batch) -> Tensor:
        """Class scores (B, K) of clean samples, or (B, K, H, W) of their pixels, by the weights that are to be judged."""
        raise NotImplementedError(f"{type(self).__name__} predicts no classes")

    def score(self, batch: Batch) -> dict[str, tuple[Tensor, int]]:
        """Sums to be pooled over an evaluation set, as name -> (sum, count)."""
        if self.tags.target == "mask":
            return iou_sums(self.logits(batch), to_target(batch["y"]), self.backbone.spec.classes)
        if self.tags.target != "class":
            return {}
        return {"accuracy": ((self.logits(batch).argmax(1) == batch["y"]).sum(), len(batch["y"]))}

    @property
    def encoder(self) -> nn.Module:
        """The backbone whose weights are judged and exported."""
        return self.backbone

    def momentum(self, step: int, total: int) -> float:
        """Momentum of the teachers after optimizer step ``step`` of ``total``."""
        raise NotImplementedError(f"{type(self).__name__} declares teachers but no momentum")

    def groups(self) -> list[dict[str, Any]]:
        """Optimizer groups; one with a ``schedule`` of its own follows that in place of the method's."""
        return parameter_groups(self)

    def forward(self, batch: Batch) -> Tensor:
        """Representations (B, D) of clean samples."""
        return self.encoder(self.views(batch, "clean")[0], batch.get("length"))

    def configure_model(self) -> None:
        """Shard the weights over the processes where the trainer asks for it (``trainer=fsdp``)."""
        if self.device_mesh is not None:
            shard(self, self.device_mesh["data_parallel"], ("training_step", "validation_step", "test_step"))

    def training_step(self, batch: Batch, batch_idx: int) -> dict[str, Any]:
        self.progress = self.global_step / max(1, self.trainer.estimated_stepping_batches)
        return self.report(self.step(batch), batch)

    def report(self, out: StepOutput, batch: Batch) -> dict[str, Any]:
        """Log what a step gave, and hand callbacks the same."""
        size = len(batch["x"] if "x" in batch else batch["unlabeled"]["x"])
        self.log("train/loss", out.loss.detach(), prog_bar=True, batch_size=size)
        self.log_dict({f"train/{name}": value for name, value in out.logs.items()}, batch_size=size)
        return {"loss": out.loss, "features": out.features, "logs": out.logs}

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self._evaluate(batch, "val")

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        self._evaluate(batch, "test")

    def _evaluate(self, batch: Batch, part: str) -> None:
        for name, (total, count) in self.score(batch).items():
            self.log(f"{part}/{name}", total / max(count, 1), self.tags.target != "mask", batch_size=count, on_epoch=True,
                     sync_dist=True)

    def on_validation_epoch_end(self) -> None:
        self._mean_iou("val")

    def on_test_epoch_end(self) -> None:
        self._mean_iou("test")

    def _mean_iou(self, part: str) -> None:
        if each := [v for name, v in self.trainer.callback_metrics.items() if name.startswith(f"{part}/iou_")]:
            self.log(f"{part}/miou", torch.stack(each).nanmean(), sync_dist=True, prog_bar=True)

    def configure_optimizers(self) -> Any:
        groups, total = self.groups(), int(self.trainer.estimated_stepping_batches)
        rates = [group.pop("schedule", self.schedule) for group in groups]
        factors: list[Any] = [lambda step, rate=rate: rate(step, total) for rate in rates]
        optimizer: Any = self.make_optimizer(groups)
        # Set by fused optimizers for float16, which is refused; Lightning would not clip their gradients under bf16-mixed.
        optimizer._step_supports_amp_scaling = False
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factors)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Step, then move the teachers: Lightning calls this once per optimizer step, not per accumulated batch."""
        super().optimizer_step(*args, **kwargs)
        self.update_teachers(self.trainer.global_step + 1, int(self.trainer.estimated_stepping_batches))

    def update_teachers(self, step: int, total: int) -> None:
        """Move every teacher towards its student."""
        for teacher, student in self.teachers.items():
            update_teacher(getattr(self, teacher), getattr(self, student), self.momentum(step, total))
