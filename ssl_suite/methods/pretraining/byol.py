"""BYOL: predict what a slowly moving copy of the network says about another view of the sample.

Idea: no negatives; a predictor on one side and a momentum teacher on the other keep the embedding from collapsing.

Paper: Grill et al., "Bootstrap Your Own Latent", NeurIPS 2020, arXiv 2006.07733, equations 2 and 3 (loss, made
symmetric) and section 3.2 (momentum rising to 1 along a cosine).

Deviations: none in the loss (lightly's ``NegativeCosineSimilarity``, shifted and scaled to equation 2). BatchNorm's
running statistics of the teacher are copied from the student; in training the teacher normalises by its own batch, as
in the official code. ``projection_norm`` is not in the paper; the projectors of SimSiam and MoCo v3 have it.

Batch: ``x`` (B, ...) and ``index`` (B,), with ``epoch`` and ``length`` (B,) where present.

Known limits: BatchNorm in the heads is part of the method, so batches of a few samples fail; with several processes
switch ``trainer.sync_batchnorm`` on. The loss says nothing about quality: watch the probe and the rank of the
features. Within a few hundred steps one direction of the embedding may outgrow all others by orders of magnitude; the
cosine then sees little else, and the features lose rank: ``projection_norm`` holds it back.
"""

from __future__ import annotations

from typing import Unpack

import torch
from lightly.loss import NegativeCosineSimilarity

from ssl_suite.batch import Backbone, Batch, StepOutput, Tags
from ssl_suite.functional.ema import cosine_momentum, make_teacher
from ssl_suite.method import Method, Training
from ssl_suite.nn.heads import mlp
from ssl_suite.views import Views


class BYOL(Method):
    """Prediction of a momentum teacher's projection of the other view.

    Args:
        backbone: any backbone.
        views: kind ``crop`` is used twice.
        hidden_dim: width of the hidden layer of projector and predictor.
        projection_dim: width of the embedding.
        projection_norm: BatchNorm without scale and shift after the projector; none in the paper.
        momentum: momentum of the teacher at the start, in [0, 1]; it ends at 1 (0.99 suits short runs).
        training: optimizer and schedule; see `Method`.
    """

    tags = Tags("Grill et al., NeurIPS 2020, arXiv 2006.07733", "pretraining", views=("crop", "crop"),
                joint_embedding=True)
    teachers = {"teacher_backbone": "backbone", "teacher_projector": "projector"}

    def __init__(self, backbone: Backbone, views: Views, *, hidden_dim: int = 4096, projection_dim: int = 256,
                 projection_norm: bool = False, momentum: float = 0.996, **training: Unpack[Training]) -> None:
        super().__init__(backbone, views, **training)
        self.projector = mlp(backbone.num_features, hidden_dim, projection_dim, last_norm=projection_norm)
        self.predictor = mlp(projection_dim, hidden_dim, projection_dim)
        self.teacher_backbone, self.teacher_projector = make_teacher(self.backbone), make_teacher(self.projector)
        self.base_momentum = momentum
        self.criterion = NegativeCosineSimilarity()

    def momentum(self, step: int, total: int) -> float:
        return cosine_momentum(self.base_momentum, step, total)

    def step(self, batch: Batch) -> StepOutput:
        views, length = self.views(batch, *self.tags.views), batch.get("length")
        h0, h1 = (self.backbone(x, length) for x in views)
        p0, p1 = (self.predictor(self.projector(h)).float() for h in (h0, h1))
        with torch.no_grad():
            z0, z1 = (self.teacher_projector(self.teacher_backbone(x, length)).float() for x in views)
        loss = 4.0 + 2.0 * (self.criterion(p0, z1) + self.criterion(p1, z0))
        return StepOutput(loss, features=h0.detach())
