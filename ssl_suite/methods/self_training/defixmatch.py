"""DeFixMatch: FixMatch whose loss on unlabelled samples is debiased by the same loss on labelled ones.

Idea: pseudo-labels bias the loss. The labelled samples show that bias, since they too can be treated as if unlabelled:
taken off with a minus, it leaves an unbiased estimate of the risk whatever the pseudo-labels are worth.

Paper: Schmutz et al., "Don't fear the unlabelled: safe semi-supervised learning via debiasing", ICLR 2023, arXiv
2203.07512. As in the code of the USB benchmark the labelled loss is the mean of those on the weak and on the strong
view, so that it covers the view that the minus term unlearns.

Deviations: the moving average is warmed up, as in `FixMatch`. Only a fixed threshold: a policy that remembers would
take the labelled rows for a step of its own.

Batch: ``labeled`` with ``x`` (B, ...), ``y`` (B,), ``index``; ``unlabeled`` with ``x`` (M, ...), ``index``; both with
``epoch`` and ``length`` where present. Labelled and unlabelled rows of different T are padded to the longer.

Known limits: with a handful of labelled rows the minus term is noisy, and above ``lambda_u`` = 1 the loss on labelled
rows has no lower bound. It is safer than FixMatch where pseudo-labels mislead, not better where they are good.
"""

from __future__ import annotations

from typing import Unpack

import torch.nn.functional as F

from ssl_suite.batch import Backbone, Batch, StepOutput, Tags
from ssl_suite.functional.pseudo_labels import concat_rows, consistency_loss
from ssl_suite.method import Training
from ssl_suite.methods.self_training.fixmatch import FixMatch
from ssl_suite.methods.self_training.policies import FixedThreshold
from ssl_suite.views import Views


class DeFixMatch(FixMatch):
    """FixMatch minus its pseudo-label loss on the labelled rows.

    Args:
        backbone: any backbone.
        views: kinds ``weak`` and ``strong`` for all samples.
        num_classes: number of classes.
        threshold: least probability of a pseudo-label that counts, in [0, 1].
        lambda_u: weight of the debiased unlabelled loss.
        ema_decay: momentum of the averaged weights.
        ema_warmup: let the momentum rise from 0 to ``ema_decay``.
        training: optimizer and schedule; see `Method`.
    """

    tags = Tags("Schmutz et al., ICLR 2023, arXiv 2203.07512", "self_training", batch="semi", views=("weak", "strong"),
                target="class")

    def __init__(self, backbone: Backbone, views: Views, *, num_classes: int, threshold: float = 0.95,
                 lambda_u: float = 1.0, ema_decay: float = 0.999, ema_warmup: bool = True,
                 **training: Unpack[Training]) -> None:
        super().__init__(backbone, views, num_classes=num_classes, policy=FixedThreshold(threshold), lambda_u=lambda_u,
                         ema_decay=ema_decay, ema_warmup=ema_warmup, **training)

    def step(self, batch: Batch) -> StepOutput:
        labeled, unlabeled = batch["labeled"], batch["unlabeled"]
        views = [*self.views(labeled, "weak", "strong"), *self.views(unlabeled, "weak", "strong")]
        lengths = [part.get("length") for part in (labeled, labeled, unlabeled, unlabeled)]
        h = self.backbone(*concat_rows(views, lengths))
        weak_l, strong_l, weak_u, strong_u = self.head(h).split([len(view) for view in views])

        loss_sup = (F.cross_entropy(weak_l, labeled["y"]) + F.cross_entropy(strong_l, labeled["y"])) / 2.0
        target, weight = self.policy(weak_u.detach().float().softmax(1))
        loss_unsup = consistency_loss(strong_u, target, weight)
        loss_bias = consistency_loss(strong_l, *self.policy(weak_l.detach().float().softmax(1)))
        logs = {"loss_sup": loss_sup.detach(), "loss_unsup": loss_unsup.detach(), "loss_bias": loss_bias.detach(),
                "mask_ratio": weight.mean()}
        return StepOutput(loss_sup + self.lambda_u * (loss_unsup - loss_bias), logs, h[: len(weak_l)].detach())
