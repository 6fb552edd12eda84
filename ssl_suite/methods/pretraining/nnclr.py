"""NNCLR: a sample's partner is not its other view but the nearest neighbour of that view among recent samples.

Idea: two views of one picture share too much; a neighbour's view brings the variety that no augmentation can make.

Paper: Dwibedi et al., "With a Little Help from My Friends: Nearest-Neighbor Contrastive Learning of Visual Representations",
ICCV 2021, arXiv 2104.14548, equations 2 and 3 and the algorithm of its appendix.

Deviations: none known. As in the algorithm, the support set takes in the first view only, after the step has used it, and
strangers are the predictions of the other view in the batch, here of all processes.

Batch: ``x`` (B, ...) and ``index`` (B,), with ``epoch`` and ``length`` (B,) where present.

Known limits: the support set holds random directions until it has been filled once, so the first steps pull towards noise;
early neighbours are often of another class. ``train/moved``, the share of samples whose neighbours of both views differ,
tells how much variety the neighbours bring.
"""

from __future__ import annotations

from typing import Unpack

import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_suite.batch import Backbone, Batch, StepOutput, Tags
from ssl_suite.functional.contrastive import swapped_info_nce
from ssl_suite.functional.precision import full_precision
from ssl_suite.method import Method, Training
from ssl_suite.nn.heads import mlp
from ssl_suite.nn.memory import Queue
from ssl_suite.views import Views


@full_precision
@torch.no_grad()
def nearest(z: Tensor, support: Tensor) -> Tensor:
    """Row of the support set (N, D), of unit length, that is most similar to each embedding (B, D): its number, (B,)."""
    return (F.normalize(z.float(), dim=1) @ support.T).argmax(dim=1)


class NNCLR(Method):
    """Contrast of predictions with the neighbours of the other view.

    Args:
        backbone: any backbone.
        views: kind ``crop`` is used twice.
        temperature: of the softmax over cosine similarities; above 0.
        queue_size: embeddings in the support set.
        hidden_dim: width of the projector's hidden layers.
        projection_dim: width of the embedding.
        predictor_dim: width of the predictor's hidden layer.
        training: optimizer and schedule; see `Method`.
    """

    tags = Tags("Dwibedi et al., ICCV 2021, arXiv 2104.14548", "pretraining", views=("crop", "crop"), across_batch=True,
                joint_embedding=True)

    def __init__(self, backbone: Backbone, views: Views, *, temperature: float = 0.1, queue_size: int = 98304,
                 hidden_dim: int = 2048, projection_dim: int = 256, predictor_dim: int = 4096,
                 **training: Unpack[Training]) -> None:
        super().__init__(backbone, views, **training)
        if temperature <= 0:
            raise ValueError(f"temperature={temperature} must be above 0")
        self.projector = mlp(backbone.num_features, hidden_dim, projection_dim, layers=3, last_norm=True)
        self.predictor = mlp(projection_dim, predictor_dim, projection_dim)
        self.queue = Queue(queue_size, projection_dim)
        self.temperature = temperature

    def step(self, batch: Batch) -> StepOutput:
        length, support = batch.get("length"), self.queue.rows
        h0, h1 = (self.backbone(x, length) for x in self.views(batch, *self.tags.views))
        z0, z1 = (self.projector(h) for h in (h0, h1))
        p0, p1 = (self.predictor(z) for z in (z0, z1))
        i0, i1 = (nearest(z, support) for z in (z0, z1))
        loss = swapped_info_nce(support[i0], support[i1], p0, p1, self.temperature) / 2.0
        self.queue.push(F.normalize(z0.detach().float(), dim=1))
        return StepOutput(loss, {"moved": (i0 != i1).float().mean()}, h0.detach())
