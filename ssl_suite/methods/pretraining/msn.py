"""MSN: a masked crop and small crops of a sample take the prototypes that its momentum teacher assigns to an unmasked crop.

Idea: matching a view of which most patches are gone with a whole view, in place of rebuilding it, makes the representation
ignore what is missing, and costs little since the missing patches are never computed. The mean prediction is kept spread over
the prototypes (me-max).

Paper: Assran et al., "Masked Siamese Networks for Label-Efficient Learning", ECCV 2022, arXiv 2204.07141, equation 1 and
section 3; Sinkhorn on the targets as in the official code. The focal masks of the paper are small crops, as there.

Deviations: none in the loss (lightly's ``MSNLoss``); embeddings are gathered first, so that me-max and Sinkhorn see the batch of
all processes. Where the backbone has no class token, its pooled tokens, the visible ones, stand for the sample.

Batch: ``x`` (B, ...) and ``index`` (B,), with ``epoch`` and ``length`` (B,) where present.

Known limits: needs a backbone that works on patches (``tokens``). me-max assumes that the data fill the prototypes alike, which
long-tailed data do not. BatchNorm in the head is part of the method: with several processes switch ``trainer.sync_batchnorm`` on.
"""

from __future__ import annotations

from typing import Unpack

import torch
from lightly.loss import MSNLoss
from torch import Tensor, nn

from ssl_suite.batch import Backbone, Batch, StepOutput, Tags
from ssl_suite.functional.distributed import gather_together
from ssl_suite.functional.ema import cosine_momentum, make_teacher
from ssl_suite.functional.masking import random_order, shown_tokens, take, visible_count
from ssl_suite.functional.multicrop import encode_together
from ssl_suite.method import Method, Training
from ssl_suite.nn.heads import mlp
from ssl_suite.views import Views

MASK_STREAM = 100


class MSN(Method):
    """Prototypes of masked and small crops matched with those of a whole crop.

    Args:
        backbone: a patch transformer.
        views: kind ``crop`` for the target and, each masked at random, ``random_views`` times for anchors; kind ``local``
            ``focal_views`` times.
        random_views: masked anchors, at least 1.
        focal_views: small anchors.
        mask_ratio: share of hidden tokens of a masked anchor, in [0, 1).
        temperature: of the anchors' predictions; above 0.
        sharpening: temperature that sharpens the targets, in (0, 1].
        memax_weight: weight of the entropy of the mean prediction.
        iterations: rounds of Sinkhorn on the targets; 0 for none.
        num_prototypes: K.
        hidden_dim: width of the head's two hidden layers.
        projection_dim: width of the embedding.
        momentum: momentum of the teacher at the start, in [0, 1]; it rises to 1 along a cosine.
        training: optimizer and schedule; see `Method`.

    Raises:
        ValueError: no masked anchor, or a ratio or temperature out of range.
    """

    tags = Tags("Assran et al., ECCV 2022, arXiv 2204.07141", "pretraining", backbone="tokens", views=("crop", "crop", "local"),
                across_batch=True, joint_embedding=True)
    teachers = {"teacher_backbone": "backbone", "teacher_projector": "projector"}

    def __init__(self, backbone: Backbone, views: Views, *, random_views: int = 1, focal_views: int = 10, mask_ratio: float = 0.3,
                 temperature: float = 0.1, sharpening: float = 0.25, memax_weight: float = 1.0, iterations: int = 3,
                 num_prototypes: int = 1024, hidden_dim: int = 2048, projection_dim: int = 256, momentum: float = 0.996,
                 **training: Unpack[Training]) -> None:
        super().__init__(backbone, views, **training)
        visible_count(1, mask_ratio)
        if random_views < 1 or not 0.0 < sharpening <= 1.0:
            raise ValueError(f"random_views={random_views} must be at least 1 and sharpening={sharpening} lie in (0, 1]")
        self.random_views, self.focal_views, self.mask_ratio, self.sharpening = random_views, focal_views, mask_ratio, sharpening
        self.projector = mlp(backbone.num_features, hidden_dim, projection_dim, layers=3)
        self.prototypes = nn.Linear(projection_dim, num_prototypes, bias=False)
        self.teacher_backbone, self.teacher_projector = make_teacher(self.backbone), make_teacher(self.projector)
        self.base_momentum = momentum
        self.criterion = MSNLoss(temperature, iterations, memax_weight)

    @property
    def encoder(self) -> nn.Module:
        """The teacher, as in the paper."""
        return self.teacher_backbone

    def momentum(self, step: int, total: int) -> float:
        return cosine_momentum(self.base_momentum, step, total)

    def masked(self, batch: Batch, x: Tensor, stream: int) -> Tensor:
        """Representations (B, D) of crops of which a random share of the tokens is dropped."""
        length = batch.get("length")
        tokens, valid = self.backbone.embed(x, length), self.backbone.patch_valid(x, length)
        count = visible_count(tokens.shape[1], self.mask_ratio)
        kept = random_order(self.views.draw(batch, MASK_STREAM + stream), tokens.shape[1], valid)[:, :count]
        shown = None if valid is None else shown_tokens(valid, self.mask_ratio, count)
        return self.backbone.pooled(self.backbone.encode(take(tokens, kept), shown), shown)

    def step(self, batch: Batch) -> StepOutput:
        large, length = 1 + self.random_views, batch.get("length")
        views = self.views(batch, *["crop"] * large, *["local"] * self.focal_views)
        hs = [self.masked(batch, x, i) for i, x in enumerate(views[1:large])]
        hs += encode_together(self.backbone, views[large:], length)
        anchors = self.projector(torch.cat(hs)).float().chunk(len(hs))
        with torch.no_grad():
            h = self.teacher_backbone(views[0], length)
            target = self.teacher_projector(h).float()
        with torch.autocast(target.device.type, enabled=False):
            *together, target = gather_together(*anchors, target)
            loss = self.criterion(torch.cat(together), target, self.prototypes.weight, self.sharpening)
        return StepOutput(loss, features=h)
