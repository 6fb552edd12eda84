"""Barlow Twins: every dimension agrees between two views, and no two dimensions say the same.

Idea: the correlation matrix of the embeddings of two views is drawn to the identity; collapse cannot be its minimum.

Paper: Zbontar et al., "Barlow Twins: Self-Supervised Learning via Redundancy Reduction", ICML 2021, arXiv 2103.03230,
equations 1 and 2.

Deviations: none in the loss (lightly's ``BarlowTwinsLoss``, held against the equations in ``tests/parity``). It sees the
samples of all processes at once, because lightly standardises over one process's where the official code standardises
over all. The official code scales the loss by 1/40 in some settings; here the rate does that.

Batch: ``x`` (B, ...) and ``index`` (B,), with ``epoch`` and ``length`` (B,) where present.

Known limits: with batches much smaller than the embedding the correlations are mostly noise. Weight of the redundancy and
width of the embedding belong together: the narrower, the larger the weight.
"""

from __future__ import annotations

from typing import Unpack

import torch
from lightly.loss import BarlowTwinsLoss

from ssl_suite.batch import Backbone, Batch, StepOutput, Tags
from ssl_suite.functional.distributed import gather_together
from ssl_suite.method import Method, Training
from ssl_suite.nn.heads import mlp
from ssl_suite.views import Views


class BarlowTwins(Method):
    """Correlation matrix of two views, drawn to the identity.

    Args:
        backbone: any backbone.
        views: kind ``crop`` is used twice.
        hidden_dim: width of the projector's two hidden layers.
        projection_dim: width of the embedding.
        redundancy: weight of the correlations off the diagonal.
        training: optimizer and schedule; see `Method`.
    """

    tags = Tags("Zbontar et al., ICML 2021, arXiv 2103.03230", "pretraining", views=("crop", "crop"), across_batch=True,
                joint_embedding=True)

    def __init__(self, backbone: Backbone, views: Views, *, hidden_dim: int = 8192, projection_dim: int = 8192,
                 redundancy: float = 0.0051, **training: Unpack[Training]) -> None:
        super().__init__(backbone, views, **training)
        self.projector = mlp(backbone.num_features, hidden_dim, projection_dim, layers=3)
        self.criterion = BarlowTwinsLoss(redundancy)

    def step(self, batch: Batch) -> StepOutput:
        length = batch.get("length")
        h0, h1 = (self.backbone(x, length) for x in self.views(batch, *self.tags.views))
        z0, z1 = gather_together(*(self.projector(h).float() for h in (h0, h1)))
        with torch.autocast(z0.device.type, enabled=False):
            loss = self.criterion(z0, z1)
        return StepOutput(loss, features=h0.detach())
