"""DINO: from any crop of a sample, match the distribution over prototypes that a momentum teacher gives a large one.

Idea: self-distillation without labels. Sharpening the teacher's distribution rules out a uniform answer, taking off its running
mean rules out a constant one; small crops matched with large ones teach that a part belongs to its whole.

Paper: Caron et al., "Emerging Properties in Self-Supervised Vision Transformers", ICCV 2021, arXiv 2104.14294, equations 1
to 4, with multi-crop.

Deviations: prototypes get unit length inside the forward pass (`PrototypeHead`). While they are frozen their rate is 0; the
official code deletes their gradient. The warm-up of the teacher's temperature and the freeze are shares of the run. Gradient
clipping and the rise of the weight decay stand in the config (trainer and callback), not in the method.

Batch: ``x`` (B, ...) and ``index`` (B,), with ``epoch`` and ``length`` (B,) where present.

Known limits: small batches and few steps need a lower momentum. Watch ``target_entropy``: 0 and log K both mean collapse. The
representation is what the backbone pools; the paper takes the class token (``pool=class`` of the ViT).
"""

from __future__ import annotations

from typing import Any, Unpack

import torch
from torch import nn

from ssl_suite.batch import Backbone, Batch, StepOutput, Tags
from ssl_suite.functional.ema import cosine_momentum, make_teacher, ramp
from ssl_suite.functional.multicrop import encode_together, swapped_prediction
from ssl_suite.method import Method, Training
from ssl_suite.nn.centre import Centre
from ssl_suite.nn.heads import PrototypeHead
from ssl_suite.optim import Frozen, parameter_groups
from ssl_suite.views import Views

LARGE = ("crop", "crop")


class DINO(Method):
    """Self-distillation over prototypes, with multi-crop.

    Args:
        backbone: any backbone.
        views: kind ``crop`` is used twice, kind ``local`` as often as ``local_crops`` says.
        local_crops: small crops, which only the student sees.
        temperature: of the student; above 0.
        teacher_temperature: of the teacher, at the start and after the warm-up; above 0.
        warmup: share of the run in which it gets there, in (0, 1].
        num_prototypes: K.
        hidden_dim: width of the head's hidden layers.
        bottleneck_dim: width in which embeddings and prototypes are compared.
        head_norm: BatchNorm in the head; the paper has none for transformers, convolutional nets on small sets need it.
        centre_momentum: share of the old centre that stays with each batch.
        momentum: momentum of the teacher at the start, in [0, 1]; it rises to 1 along a cosine.
        frozen: share of the run, from its start, in which the prototypes do not learn.
        training: optimizer and schedule; see `Method`.

    Raises:
        ValueError: a temperature is not above 0.
    """

    tags = Tags("Caron et al., ICCV 2021, arXiv 2104.14294", "pretraining", views=(*LARGE, "local"), across_batch=True,
                joint_embedding=True)
    teachers = {"teacher_backbone": "backbone", "teacher_head": "head"}

    def __init__(self, backbone: Backbone, views: Views, *, local_crops: int = 8, temperature: float = 0.1,
                 teacher_temperature: tuple[float, float] = (0.04, 0.07), warmup: float = 0.3, num_prototypes: int = 65536,
                 hidden_dim: int = 2048, bottleneck_dim: int = 256, head_norm: bool = False, centre_momentum: float = 0.9,
                 momentum: float = 0.996, frozen: float = 0.01, **training: Unpack[Training]) -> None:
        super().__init__(backbone, views, **training)
        if min(temperature, *teacher_temperature) <= 0.0:
            raise ValueError(f"temperature={temperature} and teacher_temperature={teacher_temperature} must be above 0")
        self.local_crops, self.temperature, self.frozen = local_crops, temperature, frozen
        self.teacher_temperature, self.warmup, self.base_momentum = teacher_temperature, warmup, momentum
        self.head = PrototypeHead(backbone.num_features, hidden_dim, bottleneck_dim, num_prototypes, head_norm)
        self.teacher_backbone, self.teacher_head = make_teacher(self.backbone), make_teacher(self.head)
        self.centre = Centre(num_prototypes, centre_momentum)

    @property
    def encoder(self) -> nn.Module:
        """The teacher, as in the paper."""
        return self.teacher_backbone

    def momentum(self, step: int, total: int) -> float:
        return cosine_momentum(self.base_momentum, step, total)

    def groups(self) -> list[dict[str, Any]]:
        late = [{**group, "schedule": Frozen(self.schedule, self.frozen)} for group in parameter_groups(self.head.prototypes)]
        return [*parameter_groups(self.backbone), *parameter_groups(self.head.body), *late]

    def step(self, batch: Batch) -> StepOutput:
        views, length = self.views(batch, *LARGE, *["local"] * self.local_crops), batch.get("length")
        scores = self.head(torch.cat(encode_together(self.backbone, views, length))).chunk(len(views))
        with torch.no_grad():
            h = encode_together(self.teacher_backbone, views[:2], length)
            temperature = ramp(*self.teacher_temperature, self.progress / self.warmup)
            targets = self.centre(torch.stack([self.teacher_head(one) for one in h]), temperature)
        logs = {"target_entropy": torch.special.entr(targets).sum(dim=-1).mean()}
        return StepOutput(swapped_prediction(scores, list(targets), self.temperature), logs, h[0])
