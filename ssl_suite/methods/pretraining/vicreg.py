"""VICReg: pull two views together while every embedding dimension keeps its spread and no two repeat each other.

Idea: collapse is ruled out by writing it down: a hinge on each dimension's standard deviation, a penalty on
covariances.

Paper: Bardes, Ponce and LeCun, "VICReg: Variance-Invariance-Covariance Regularization for Self-Supervised Learning",
ICLR 2022, arXiv 2105.04906, equations 1 to 6.

Deviations: the loss is lightly's ``VICRegLoss``, which follows the official code where that differs from the paper's
text: the invariance term is a mean over dimensions too (equation 5 sums over them), and the variance term is the mean
of the two branches (equation 6 adds them). The published weights 25, 25, 1 belong to the code. Tests hold value and
gradient against it written out.

Batch: ``x`` (B, ...) and ``index`` (B,), with ``epoch`` and ``length`` (B,) where present.

Known limits: variances and covariances are estimated over the batch of all processes; with batches much smaller than
the embedding the covariance is mostly noise. The expander is wide by design and costs more than a tiny backbone.
"""

from __future__ import annotations

from typing import Unpack

import torch
from lightly.loss import VICRegLoss

from ssl_suite.batch import Backbone, Batch, StepOutput, Tags
from ssl_suite.method import Method, Training
from ssl_suite.nn.heads import mlp
from ssl_suite.views import Views


class VICReg(Method):
    """Invariance, variance and covariance of the embeddings of two views.

    Args:
        backbone: any backbone.
        views: kind ``crop`` is used twice.
        hidden_dim: width of the expander's two hidden layers.
        projection_dim: width of the embedding.
        invariance: weight of the distance between views.
        variance: weight of the hinge on standard deviations.
        covariance: weight of the covariances off the diagonal.
        training: optimizer and schedule; see `Method`.
    """

    tags = Tags("Bardes et al., ICLR 2022, arXiv 2105.04906", "pretraining", views=("crop", "crop"), across_batch=True,
                joint_embedding=True)

    def __init__(self, backbone: Backbone, views: Views, *, hidden_dim: int = 8192, projection_dim: int = 8192,
                 invariance: float = 25.0, variance: float = 25.0, covariance: float = 1.0,
                 **training: Unpack[Training]) -> None:
        super().__init__(backbone, views, **training)
        self.projector = mlp(backbone.num_features, hidden_dim, projection_dim, layers=3)
        self.criterion = VICRegLoss(invariance, variance, covariance, gather_distributed=True)

    def step(self, batch: Batch) -> StepOutput:
        length = batch.get("length")
        h0, h1 = (self.backbone(x, length) for x in self.views(batch, *self.tags.views))
        z0, z1 = (self.projector(h).float() for h in (h0, h1))
        with torch.autocast(z0.device.type, enabled=False):
            loss = self.criterion(z0, z1)
        return StepOutput(loss, features=h0.detach())
