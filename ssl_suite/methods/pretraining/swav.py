"""SwAV: predict from one view the prototypes that another view of the sample is assigned to.

Idea: cluster while learning. Codes fill the prototypes alike over a batch, so not all samples can share one; views swap
their codes, and cheap small crops predict the codes of the large ones.

Paper: Caron et al., "Unsupervised Learning of Visual Features by Contrasting Cluster Assignments", NeurIPS 2020, arXiv
2006.09882, equations 2 and 3 and section 3.2 (multi-crop).

Deviations: prototypes get unit length inside the forward pass, which takes the radial part out of their gradient; the
official code overwrites the weights, which would not survive sharding. While they are frozen their rate is 0; the
official code deletes their gradient. The queue's share of the codes is told by the run's progress alone, and its rows are
random directions until it has been filled once (the official queue waits until it is full). Sinkhorn works on logarithms.

Batch: ``x`` (B, ...) and ``index`` (B,), with ``epoch`` and ``length`` (B,) where present.

Known limits: without a queue the batch of all processes should not be smaller than the number of prototypes. Small crops
keep the size of the large ones where the data set says so (digits, speech, series): they cost as much then.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Unpack

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_suite.batch import Backbone, Batch, StepOutput, Tags
from ssl_suite.functional.distributed import rank, world_size
from ssl_suite.functional.multicrop import encode_together, swapped_prediction
from ssl_suite.functional.prototypes import similarity
from ssl_suite.functional.sinkhorn import sinkhorn
from ssl_suite.method import Method, Training
from ssl_suite.nn.heads import mlp
from ssl_suite.nn.memory import Queue
from ssl_suite.optim import Frozen, parameter_groups
from ssl_suite.views import Views

LARGE = ("crop", "crop")


class SwAV(Method):
    """Swapped prediction of balanced cluster codes, with multi-crop.

    Args:
        backbone: any backbone.
        views: kind ``crop`` is used twice, kind ``local`` as often as ``local_crops`` says.
        local_crops: small crops.
        temperature: of the predictions; above 0.
        epsilon: entropy weight of Sinkhorn; above 0.
        iterations: rounds of Sinkhorn.
        num_prototypes: K.
        frozen: share of the run, from its start, in which the prototypes do not learn.
        queue_size: past samples that take part in balancing the codes, for small batches; 0 for none.
        queue_start: share of the run after which they do.
        hidden_dim: width of the head's hidden layer.
        projection_dim: width D of the embedding.
        training: optimizer and schedule; see `Method`.
    """

    tags = Tags("Caron et al., NeurIPS 2020, arXiv 2006.09882", "pretraining", views=(*LARGE, "local"), across_batch=True,
                joint_embedding=True)

    def __init__(self, backbone: Backbone, views: Views, *, local_crops: int = 6, temperature: float = 0.1,
                 epsilon: float = 0.05, iterations: int = 3, num_prototypes: int = 3000, frozen: float = 0.01,
                 queue_size: int = 0, queue_start: float = 0.05, hidden_dim: int = 2048, projection_dim: int = 128,
                 **training: Unpack[Training]) -> None:
        super().__init__(backbone, views, **training)
        for name, value in (("temperature", temperature), ("epsilon", epsilon)):
            if value <= 0:
                raise ValueError(f"{name}={value} must be above 0")
        self.projector = mlp(backbone.num_features, hidden_dim, projection_dim)
        self.prototypes = nn.Linear(projection_dim, num_prototypes, bias=False)
        self.queue = Queue(queue_size, 2 * projection_dim) if queue_size else None  # both large crops of a sample in a row
        self.local_crops, self.frozen, self.queue_start = local_crops, frozen, queue_start
        self.temperature, self.epsilon, self.iterations = temperature, epsilon, iterations

    def groups(self) -> list[dict[str, Any]]:
        frozen = [{**group, "schedule": Frozen(self.schedule, self.frozen)} for group in parameter_groups(self.prototypes)]
        return [*parameter_groups(self.backbone), *parameter_groups(self.projector), *frozen]

    def codes(self, scores: Sequence[Tensor]) -> list[Tensor]:
        """Codes of the large crops (B, K), balanced over the batch of all processes and, later in the run, the queue."""
        if self.queue is None or self.progress < self.queue_start:
            return [sinkhorn(s, self.epsilon, self.iterations) for s in scores]
        share = self.queue.rows[rank()::world_size()].chunk(2, dim=1)
        both = [torch.cat([s, similarity(past, self.prototypes.weight)]) for s, past in zip(scores, share, strict=True)]
        return [sinkhorn(s, self.epsilon, self.iterations)[:len(scores[0])] for s in both]

    def step(self, batch: Batch) -> StepOutput:
        views = self.views(batch, *LARGE, *["local"] * self.local_crops)
        hs = encode_together(self.backbone, views, batch.get("length"))
        z = F.normalize(self.projector(torch.cat(hs)).float(), dim=1)
        scores = similarity(z, self.prototypes.weight).chunk(len(views))
        loss = swapped_prediction(scores, self.codes(scores[:2]), self.temperature)
        if self.queue is not None:
            self.queue.push(torch.cat(z.detach().chunk(len(views))[:2], dim=1))
        return StepOutput(loss, features=hs[0].detach())
