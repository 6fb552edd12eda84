"""PAL: samples that are known to be the same kind of thing attract each other; whence that is known, the loss does not ask.

Idea: losses with views, with labels and with answers to "are these two the same?" differ only in a graph over samples. Views link
each sample to itself, labels link classes, answers link whatever was asked about, and what follows from them. One answer is
cheaper than a label, needs no list of classes, and can be asked for where the embedding would move most.

Paper: Cabannes, Bottou, LeCun and Balestriero, "Active Self-Supervised Learning: A Few Low-Cost Relationships Are All You Need",
ICCV 2023, arXiv 2303.15256: the losses of SimCLR, VICReg and Barlow Twins as functions of the graph.

Deviations: the graph is made of components, each normalised by its size, so that answers hold for all that they imply. Batches
are drawn at random, not along the edges: a link counts in those batches that hold both samples. "Different" serves to ask no
question twice; in the loss an unknown pair counts as different, as it does in the losses of views. Questions come from
``scripts/ask_pairs.py`` between runs.

Batch: ``x`` (B, ...) and ``index`` (B,), with ``epoch`` and ``length`` (B,) where present.

Known limits: with components much smaller than the data over the batch, few links meet in a batch (``train/partners``). One wrong
"same" joins two components for good. Asking is quadratic in the samples.
"""

from __future__ import annotations

from typing import Literal, Unpack

import torch
from torch import Tensor

from ssl_suite.batch import Backbone, Batch, StepOutput, Tags
from ssl_suite.data.relations import SimilarityGraph
from ssl_suite.functional.contrastive import supcon_loss
from ssl_suite.functional.relations import graph_barlow_loss, vic2_loss
from ssl_suite.method import Method, Training
from ssl_suite.nn.heads import mlp
from ssl_suite.views import Views


class PAL(Method):
    """Learning from a similarity graph: of views alone, of labels, or of answers about pairs.

    Args:
        backbone: any backbone.
        views: kind ``crop`` is used twice.
        loss: ``contrastive`` (SimCLR, with all akin as positives), ``vic2`` (VICReg) or ``barlow`` (Barlow Twins).
        relations: CSV of answered pairs (`SimilarityGraph`); None knows of views only, and is self-supervised.
        num_samples: size of the training set; needed with ``relations``.
        temperature: of the contrastive loss; above 0.
        off_diagonal: weight of the squares off the diagonal in the loss of Barlow Twins.
        hidden_dim: width of the head's hidden layer.
        projection_dim: width of the embedding.
        training: optimizer and schedule; see `Method`.

    Raises:
        ValueError: an unknown loss, a temperature not above 0, or a file of pairs that cannot be read.
    """

    tags = Tags("Cabannes et al., ICCV 2023, arXiv 2303.15256", "pretraining", views=("crop", "crop"), across_batch=True,
                joint_embedding=True)

    def __init__(self, backbone: Backbone, views: Views, *, loss: Literal["contrastive", "vic2", "barlow"] = "contrastive",
                 relations: str | None = None, num_samples: int = 0, temperature: float = 0.2, off_diagonal: float = 0.005,
                 hidden_dim: int = 2048, projection_dim: int = 128, **training: Unpack[Training]) -> None:
        super().__init__(backbone, views, **training)
        if loss not in ("contrastive", "vic2", "barlow"):
            raise ValueError(f"loss must be 'contrastive', 'vic2' or 'barlow', got {loss!r}")
        if temperature <= 0.0:
            raise ValueError(f"temperature={temperature} must be above 0")
        self.loss, self.temperature, self.off_diagonal = loss, temperature, off_diagonal
        self.projector = mlp(backbone.num_features, hidden_dim, projection_dim)
        known = None if relations is None else torch.from_numpy(SimilarityGraph.load(relations, num_samples).components())
        self.component: Tensor | None
        self.register_buffer("component", known)

    def criterion(self, z: Tensor, component: Tensor) -> Tensor:
        """Loss of embeddings (2B, D) that belong to components (2B,)."""
        if self.loss == "contrastive":
            return supcon_loss(z, component, self.temperature)
        return vic2_loss(z, component) if self.loss == "vic2" else graph_barlow_loss(z, component, self.off_diagonal)

    def step(self, batch: Batch) -> StepOutput:
        length = batch.get("length")
        h = self.backbone(torch.cat(self.views(batch, *self.tags.views)), None if length is None else length.repeat(2))
        own = batch["index"] if self.component is None else self.component[batch["index"]]
        partners = (own[:, None] == own).sum(1).float().mean() - 1.0
        return StepOutput(self.criterion(self.projector(h), own.repeat(2)), {"partners": partners}, h.detach().chunk(2)[0])
