"""SupCon: samples of a class attract each other in every view, all others repel.

Idea: where labels exist, the partners of a sample are not only its other view but all samples of its class.

Paper: Khosla et al., "Supervised Contrastive Learning", NeurIPS 2020, arXiv 2004.11362, equation 2 (the sum over positives
outside the logarithm).

Deviations: the official code multiplies the loss by temperature / 0.07, which is 1 at its default; equation 2 has no such
factor and neither has this file. The classifier that the paper trains afterwards is ``model=linear_probe``.

Batch: ``x`` (B, ...), ``index`` (B,) and ``y`` (B,), with ``epoch`` and ``length`` (B,) where present.

Known limits: labels shape the space, so what they ignore is lost for other tasks; with few labels the batches are small and
repeat. Batches of one sample per class leave plain SimCLR.
"""

from __future__ import annotations

from typing import Unpack

import torch

from ssl_suite.batch import Backbone, Batch, StepOutput, Tags
from ssl_suite.functional.contrastive import supcon_loss
from ssl_suite.method import Method, Training
from ssl_suite.nn.heads import mlp
from ssl_suite.views import Views


class SupCon(Method):
    """Contrastive learning of classes.

    Args:
        backbone: any backbone.
        views: kind ``crop`` is used twice.
        temperature: of the softmax over cosine similarities; above 0.
        hidden_dim: width of the head's hidden layer.
        projection_dim: width of the embedding.
        training: optimizer and schedule; see `Method`.
    """

    tags = Tags("Khosla et al., NeurIPS 2020, arXiv 2004.11362", "pretraining", batch="labeled", views=("crop", "crop"),
                across_batch=True, joint_embedding=True)

    def __init__(self, backbone: Backbone, views: Views, *, temperature: float = 0.1, hidden_dim: int = 2048,
                 projection_dim: int = 128, **training: Unpack[Training]) -> None:
        super().__init__(backbone, views, **training)
        if temperature <= 0:
            raise ValueError(f"temperature={temperature} must be above 0")
        self.projector = mlp(backbone.num_features, hidden_dim, projection_dim, norm=False)
        self.temperature = temperature

    def step(self, batch: Batch) -> StepOutput:
        length = batch.get("length")
        h = self.backbone(torch.cat(self.views(batch, *self.tags.views)), None if length is None else length.repeat(2))
        loss = supcon_loss(self.projector(h), batch["y"].repeat(2), self.temperature)
        return StepOutput(loss, features=h.detach().chunk(2)[0])
