"""SimCLR: two views of a sample attract each other, views of all other samples repel.

Idea: what two random views of a picture share is what it shows; tell the partner from 2B - 2 strangers by it.

Paper: Chen et al., "A Simple Framework for Contrastive Learning of Visual Representations", ICML 2020, arXiv 2002.05709,
equation 1 (NT-Xent).

Deviations: none in the loss, which ``tests/parity`` holds against the equation and against lightly's. The projection head is
two layers with BatchNorm as in the official code, not the plain head of the paper's text. Speech and series use their own views.

Batch: ``x`` (B, ...) and ``index`` (B,), with ``epoch`` and ``length`` (B,) where present.

Known limits: small batches give few strangers; below 64 samples per step over all processes expect a weaker result.
"""

from __future__ import annotations

from typing import Unpack

import torch

from ssl_suite.batch import Backbone, Batch, StepOutput, Tags
from ssl_suite.functional.contrastive import nt_xent
from ssl_suite.method import Method, Training
from ssl_suite.nn.heads import mlp
from ssl_suite.views import Views


class SimCLR(Method):
    """Contrastive learning of two views.

    Args:
        backbone: any backbone.
        views: kind ``crop`` is used twice.
        temperature: of the softmax over cosine similarities; above 0.
        hidden_dim: width of the head's hidden layer.
        projection_dim: width of the embedding.
        training: optimizer and schedule; see `Method`.
    """

    tags = Tags("Chen et al., ICML 2020, arXiv 2002.05709", "pretraining", views=("crop", "crop"), across_batch=True,
                joint_embedding=True)

    def __init__(self, backbone: Backbone, views: Views, *, temperature: float = 0.5, hidden_dim: int = 2048,
                 projection_dim: int = 128, **training: Unpack[Training]) -> None:
        super().__init__(backbone, views, **training)
        self.projector = mlp(backbone.num_features, hidden_dim, projection_dim)
        self.temperature = temperature

    def step(self, batch: Batch) -> StepOutput:
        x = torch.cat(self.views(batch, *self.tags.views))
        length = batch.get("length")
        h = self.backbone(x, None if length is None else length.repeat(2))
        z0, z1 = self.projector(h).chunk(2)
        loss = nt_xent(z0, z1, self.temperature)
        return StepOutput(loss, features=h.detach().chunk(2)[0])
