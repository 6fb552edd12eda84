"""SimSiam: predict the network's own embedding of another view, through which no gradient flows.

Idea: neither strangers nor a momentum copy are needed; a predictor and a stopped gradient keep the embedding from collapsing.

Paper: Chen and He, "Exploring Simple Siamese Representation Learning", CVPR 2021, arXiv 2011.10566, algorithm 1,
equation 3; the predictor's rate does not decay (section 4.2).

Deviations: none in the loss (lightly's ``NegativeCosineSimilarity``, held against the equation in ``tests/parity``).

Batch: ``x`` (B, ...) and ``index`` (B,), with ``epoch`` and ``length`` (B,) where present.

Known limits: the loss says nothing about quality, and weight decay or a predictor that learns too slowly can end in
collapse: watch ``train/spread``, the standard deviation of the normalised embedding times the root of its width, which is
near 1 in health and 0 in collapse. BatchNorm in the heads is part of the method: with several processes switch
``trainer.sync_batchnorm`` on.
"""

from __future__ import annotations

from typing import Any, Unpack

import torch.nn.functional as F
from lightly.loss import NegativeCosineSimilarity

from ssl_suite.batch import Backbone, Batch, StepOutput, Tags
from ssl_suite.method import Method, Training
from ssl_suite.nn.heads import mlp
from ssl_suite.optim import Constant, parameter_groups
from ssl_suite.views import Views


class SimSiam(Method):
    """Prediction of the other view's embedding, with a stopped gradient.

    Args:
        backbone: any backbone.
        views: kind ``crop`` is used twice.
        hidden_dim: width of the projector's hidden layers.
        projection_dim: width of the embedding.
        predictor_dim: width of the predictor's hidden layer, narrower than the embedding.
        training: optimizer and schedule; see `Method`. The predictor keeps the base rate throughout.
    """

    tags = Tags("Chen and He, CVPR 2021, arXiv 2011.10566", "pretraining", views=("crop", "crop"), joint_embedding=True)

    def __init__(self, backbone: Backbone, views: Views, *, hidden_dim: int = 2048, projection_dim: int = 2048,
                 predictor_dim: int = 512, **training: Unpack[Training]) -> None:
        super().__init__(backbone, views, **training)
        self.projector = mlp(backbone.num_features, hidden_dim, projection_dim, layers=3, last_norm=True)
        self.predictor = mlp(projection_dim, predictor_dim, projection_dim)
        self.criterion = NegativeCosineSimilarity()

    def groups(self) -> list[dict[str, Any]]:
        constant = [{**group, "schedule": Constant()} for group in parameter_groups(self.predictor)]
        return [*parameter_groups(self.backbone), *parameter_groups(self.projector), *constant]

    def step(self, batch: Batch) -> StepOutput:
        length = batch.get("length")
        h0, h1 = (self.backbone(x, length) for x in self.views(batch, *self.tags.views))
        z0, z1 = (self.projector(h).float() for h in (h0, h1))
        p0, p1 = (self.predictor(z).float() for z in (z0, z1))
        loss = (self.criterion(p0, z1.detach()) + self.criterion(p1, z0.detach())) / 2.0
        spread = F.normalize(z0.detach(), dim=1).std(0).mean() * z0.shape[1] ** 0.5
        return StepOutput(loss, {"spread": spread}, h0.detach())
