"""VICReg: pull two views together while every embedding dimension keeps its spread and no two repeat each other.

Idea: collapse is ruled out by writing it down: a hinge on each dimension's standard deviation, a penalty on
covariances.

Paper: Bardes, Ponce and LeCun, "VICReg: Variance-Invariance-Covariance Regularization for Self-Supervised Learning",
ICLR 2022, arXiv 2105.04906, equations 1 to 6.

Deviations: the loss follows the official code where that differs from the paper's text: the invariance term is a mean
over dimensions too (equation 5 sums over them), and the variance term is the mean of the two branches (equation 6 adds
them). The published weights 25, 25, 1 belong to the code. Tests hold value and gradient against it written out, and
against lightly's ``VICRegLoss``, which picks covariances by a mask and so waits for the device.

Batch: ``x`` (B, ...) and ``index`` (B,), with ``epoch`` and ``length`` (B,) where present.

Known limits: variances and covariances are estimated over the batch of all processes; with batches much smaller than
the embedding the covariance is mostly noise. The expander is wide by design and costs more than a tiny backbone.
"""

from __future__ import annotations

from functools import partial
from typing import Unpack

import torch.nn.functional as F
from torch import Tensor

from ssl_suite.batch import Backbone, Batch, StepOutput, Tags
from ssl_suite.functional.distributed import gather_together
from ssl_suite.functional.precision import full_precision
from ssl_suite.method import Method, Training
from ssl_suite.nn.heads import mlp
from ssl_suite.views import Views


def spread_hinge(z: Tensor) -> Tensor:
    """How far the standard deviations of the dimensions of (N, D) stay below 1, on average (equation 1)."""
    return (1.0 - (z.var(0) + 1e-4).sqrt()).relu().mean()


def decorrelation(z: Tensor) -> Tensor:
    """Sum of the squared covariances off the diagonal over D, of samples (N, D) (equations 3 and 4)."""
    centred = z - z.mean(0)
    covariance = centred.T @ centred / (len(z) - 1)
    return (covariance.square().sum() - covariance.diagonal().square().sum()) / z.shape[1]


@full_precision
def vicreg_loss(z0: Tensor, z1: Tensor, invariance: float, variance: float, covariance: float) -> Tensor:
    """Weighted sum of the three terms (equation 6) for embeddings (N, D) of two views, of all processes."""
    hinge = (spread_hinge(z0) + spread_hinge(z1)) / 2.0
    return invariance * F.mse_loss(z0, z1) + variance * hinge + covariance * (decorrelation(z0) + decorrelation(z1))


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
        self.criterion = partial(vicreg_loss, invariance=invariance, variance=variance, covariance=covariance)

    def step(self, batch: Batch) -> StepOutput:
        length = batch.get("length")
        h0, h1 = (self.backbone(x, length) for x in self.views(batch, *self.tags.views))
        z0, z1 = gather_together(*(self.projector(h).float() for h in (h0, h1)))
        return StepOutput(self.criterion(z0, z1), features=h0.detach())
