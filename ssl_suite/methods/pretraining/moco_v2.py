"""MoCo v2: find the other view of a sample, seen by a slowly moving copy of the network, among a queue of past ones.

Idea: the strangers of a contrastive loss come from a queue of earlier keys, so their number does not hang on the batch; a
momentum encoder keeps the keys consistent.

Paper: Chen et al., "Improved Baselines with Momentum Contrastive Learning", arXiv 2003.04297 (MLP head, strong views), on
He et al., "Momentum Contrast", CVPR 2020, arXiv 1911.05722, equations 1 and 2.

Deviations: no shuffling of samples between processes before the key encoder (shuffling BN). It stops query and key from
betraying each other by shared batch statistics and has no meaning on one device; with several, switch
``trainer.sync_batchnorm`` on, so that statistics are those of many samples. BatchNorm's running statistics of the momentum
encoder are copied from the query encoder; in training it normalises by its own batch.

Batch: ``x`` (B, ...) and ``index`` (B,), with ``epoch`` and ``length`` (B,) where present.

Known limits: a queue as long as the data set holds keys of the very sample that is asked for, counted as strangers: keep
it well below. Its rows are random directions until it has been filled once.
"""

from __future__ import annotations

from typing import Unpack

import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_suite.batch import Backbone, Batch, StepOutput, Tags
from ssl_suite.functional.ema import make_teacher
from ssl_suite.functional.precision import full_precision
from ssl_suite.method import Method, Training
from ssl_suite.nn.heads import mlp
from ssl_suite.nn.memory import Queue
from ssl_suite.views import Views


@full_precision
def queue_loss(q: Tensor, k: Tensor, queue: Tensor, temperature: float) -> Tensor:
    """-log softmax of each query's own key among it and the queue (MoCo, equation 1), in float32.

    Args:
        q: queries, (B, D), of any length.
        k: own keys of unit length, (B, D), without gradient.
        queue: other keys of unit length, (N, D).
        temperature: above 0.

    Returns:
        Scalar.
    """
    q = F.normalize(q.float(), dim=1)
    logits = torch.cat([(q * k).sum(1, keepdim=True), q @ queue.T], dim=1) / temperature
    return F.cross_entropy(logits, logits.new_zeros(len(q), dtype=torch.int64))


class MoCoV2(Method):
    """Contrast with a queue of momentum keys.

    Args:
        backbone: any backbone.
        views: kind ``crop`` is used twice.
        temperature: of the softmax over cosine similarities; above 0.
        queue_size: keys kept.
        hidden_dim: width of the head's hidden layer.
        projection_dim: width of the embedding.
        momentum: momentum of the key encoder, constant, in [0, 1] (0.99 suits short runs).
        training: optimizer and schedule; see `Method`.
    """

    tags = Tags("Chen et al., 2020, arXiv 2003.04297", "pretraining", views=("crop", "crop"), across_batch=True,
                joint_embedding=True)
    teachers = {"teacher_backbone": "backbone", "teacher_projector": "projector"}

    def __init__(self, backbone: Backbone, views: Views, *, temperature: float = 0.2, queue_size: int = 65536,
                 hidden_dim: int = 2048, projection_dim: int = 128, momentum: float = 0.999,
                 **training: Unpack[Training]) -> None:
        super().__init__(backbone, views, **training)
        if temperature <= 0:
            raise ValueError(f"temperature={temperature} must be above 0")
        self.projector = mlp(backbone.num_features, hidden_dim, projection_dim, norm=False)
        self.teacher_backbone, self.teacher_projector = make_teacher(self.backbone), make_teacher(self.projector)
        self.queue = Queue(queue_size, projection_dim)
        self.temperature, self.base_momentum = temperature, momentum

    def momentum(self, step: int, total: int) -> float:
        return self.base_momentum

    def step(self, batch: Batch) -> StepOutput:
        (x0, x1), length = self.views(batch, *self.tags.views), batch.get("length")
        h = self.backbone(x0, length)
        with torch.no_grad():
            k = F.normalize(self.teacher_projector(self.teacher_backbone(x1, length)).float(), dim=1)
        loss = queue_loss(self.projector(h), k, self.queue.rows, self.temperature)
        self.queue.push(k)
        return StepOutput(loss, features=h.detach())
