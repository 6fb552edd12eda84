"""MoCo v3: predict a momentum encoder's key of the other view so well that it is told from all keys of the batch.

Idea: with large batches the queue can go; a predictor and a symmetric loss take its place. A vision transformer trains
stably once its patch embedding stays as it was drawn.

Paper: Chen, Xie and He, "An Empirical Study of Training Self-Supervised Vision Transformers", ICCV 2021, arXiv 2104.02057,
algorithm 1 (loss times 2 tau, made symmetric), section 4.2 (frozen patch embedding), section 4 (momentum rising to 1
along a cosine).

Deviations: heads are those for transformers, whatever the backbone: three layers in the projector, two in the predictor,
BatchNorm after each. BatchNorm's running statistics of the momentum encoder are copied from the query encoder; in
training it normalises by its own batch.

Batch: ``x`` (B, ...) and ``index`` (B,), with ``epoch`` and ``length`` (B,) where present.

Known limits: strangers are the keys of the batch over all processes, so small batches are weak. BatchNorm in the heads is
part of the method: with several processes switch ``trainer.sync_batchnorm`` on.
"""

from __future__ import annotations

from typing import Unpack

import torch

from ssl_suite.batch import Backbone, Batch, StepOutput, Tags
from ssl_suite.functional.contrastive import swapped_info_nce
from ssl_suite.functional.ema import cosine_momentum, make_teacher
from ssl_suite.method import Method, Training
from ssl_suite.nn.heads import mlp
from ssl_suite.views import Views


class MoCoV3(Method):
    """Contrast of predictions with the momentum keys of the batch.

    Args:
        backbone: any backbone; the patch embedding of a transformer stays as it is.
        views: kind ``crop`` is used twice.
        temperature: of the softmax over cosine similarities; above 0.
        hidden_dim: width of the hidden layers of projector and predictor.
        projection_dim: width of the embedding.
        momentum: momentum of the key encoder at the start, in [0, 1]; it ends at 1.
        freeze_patches: leave the patch embedding of a transformer untrained; no effect on other backbones.
        training: optimizer and schedule; see `Method`.
    """

    tags = Tags("Chen et al., ICCV 2021, arXiv 2104.02057", "pretraining", views=("crop", "crop"), across_batch=True,
                joint_embedding=True)
    teachers = {"teacher_backbone": "backbone", "teacher_projector": "projector"}

    def __init__(self, backbone: Backbone, views: Views, *, temperature: float = 0.2, hidden_dim: int = 4096,
                 projection_dim: int = 256, momentum: float = 0.99, freeze_patches: bool = True,
                 **training: Unpack[Training]) -> None:
        super().__init__(backbone, views, **training)
        if temperature <= 0:
            raise ValueError(f"temperature={temperature} must be above 0")
        if freeze_patches and hasattr(backbone, "patches"):
            backbone.frontend.requires_grad_(False)
        self.projector = mlp(backbone.num_features, hidden_dim, projection_dim, layers=3, last_norm=True)
        self.predictor = mlp(projection_dim, hidden_dim, projection_dim, last_norm=True)
        self.teacher_backbone, self.teacher_projector = make_teacher(self.backbone), make_teacher(self.projector)
        self.temperature, self.base_momentum = temperature, momentum

    def momentum(self, step: int, total: int) -> float:
        return cosine_momentum(self.base_momentum, step, total)

    def step(self, batch: Batch) -> StepOutput:
        views, length = self.views(batch, *self.tags.views), batch.get("length")
        h0, h1 = (self.backbone(x, length) for x in views)
        q0, q1 = (self.predictor(self.projector(h)) for h in (h0, h1))
        with torch.no_grad():
            k0, k1 = (self.teacher_projector(self.teacher_backbone(x, length)) for x in views)
        loss = swapped_info_nce(q0, q1, k0, k1, self.temperature)
        return StepOutput(2.0 * self.temperature * loss, features=h0.detach())
