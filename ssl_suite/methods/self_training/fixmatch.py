"""FixMatch: what the model says surely about a weakly augmented sample must hold for a strongly augmented one.

Idea: the guess on the weak view becomes the label of the strong view wherever the model is sure enough.

Paper: Sohn et al., "FixMatch: Simplifying Semi-Supervised Learning with Consistency and Confidence", NeurIPS 2020,
arXiv 2001.07685, equations 3 and 4. As in the official code all rows pass in one forward, the unlabelled loss is
divided by the whole unlabelled batch, and the moving average of the weights is used for evaluation only, never for the
pseudo-labels.

Deviations: the moving average is warmed up, momentum min(1 - 1/(t + 1), ``ema_decay``) after t optimizer steps as in
Mean Teacher (arXiv 1703.01780); at a decay of 0.999 the law is the plain one from step 1000 on, and short runs are not
judged by their random start. ``ema_warmup=False`` is the official law. Which guesses are believed is an object
(``policy``), so that FreeMatch and its kin are one override, ``policy=freematch``. The strong view is what the data
configuration says; its last operation should be a cut-out.

Batch: ``labeled`` with ``x`` (B, ...), ``y`` (B,), ``index``; ``unlabeled`` with ``x`` (M, ...), ``index``; both with
``epoch`` and ``length`` where present. Labelled and unlabelled rows of different T are padded to the longer.

Known limits: BatchNorm sees weak and strong rows together, so the ratio M/B is part of the method (the paper: 7). With
four labels per class the result hangs on which ones they are: report several splits, and the end of training rather
than its best moment.
"""

from __future__ import annotations

from typing import Unpack

import torch.nn.functional as F
from torch import Tensor, nn

from ssl_suite.batch import Backbone, Batch, StepOutput, Tags
from ssl_suite.functional.ema import make_teacher
from ssl_suite.functional.pseudo_labels import concat_rows, consistency_loss
from ssl_suite.method import Method, Training
from ssl_suite.methods.self_training.policies import FixedThreshold, Policy
from ssl_suite.views import Views


class FixMatch(Method):
    """Consistency between a weak and a strong view, through confident pseudo-labels.

    Args:
        backbone: any backbone.
        views: kind ``weak`` for all samples, ``strong`` for the unlabelled ones.
        num_classes: number of classes.
        policy: which pseudo-labels count, see `policies`; a fixed threshold of 0.95 by default.
        lambda_u: weight of the unlabelled loss.
        ema_decay: momentum of the averaged weights.
        ema_warmup: let the momentum rise from 0 to ``ema_decay``.
        training: optimizer and schedule; see `Method`. The paper: SGD with Nesterov 0.9 and `FixMatchCosine`.
    """

    tags = Tags("Sohn et al., NeurIPS 2020, arXiv 2001.07685", "self_training", batch="semi", views=("weak", "strong"),
                target="class")
    teachers = {"ema_backbone": "backbone", "ema_head": "head"}

    def __init__(self, backbone: Backbone, views: Views, *, num_classes: int, policy: Policy | None = None,
                 lambda_u: float = 1.0, ema_decay: float = 0.999, ema_warmup: bool = True,
                 **training: Unpack[Training]) -> None:
        super().__init__(backbone, views, **training)
        self.head = nn.Linear(backbone.num_features, num_classes)
        self.ema_backbone, self.ema_head = make_teacher(self.backbone), make_teacher(self.head)
        self.policy = policy or FixedThreshold()
        self.lambda_u, self.ema_decay, self.ema_warmup = lambda_u, ema_decay, ema_warmup

    def momentum(self, step: int, total: int) -> float:
        return min(1.0 - 1.0 / (step + 1), self.ema_decay) if self.ema_warmup else self.ema_decay

    def step(self, batch: Batch) -> StepOutput:
        labeled, unlabeled = batch["labeled"], batch["unlabeled"]
        views = [*self.views(labeled, "weak"), *self.views(unlabeled, "weak", "strong")]
        lengths = [part.get("length") for part in (labeled, unlabeled, unlabeled)]
        h = self.backbone(*concat_rows(views, lengths))
        logits, weak, strong = self.head(h).split([len(view) for view in views])

        target, weight = self.policy(weak.detach().float().softmax(1), index=unlabeled["index"],
                                     labeled_probs=logits.detach().float().softmax(1), labels=labeled["y"])
        loss_sup = F.cross_entropy(logits, labeled["y"])
        loss_unsup = consistency_loss(strong, target, weight)
        logs = {"loss_sup": loss_sup.detach(), "loss_unsup": loss_unsup.detach(), "mask_ratio": weight.mean()}
        loss = loss_sup + self.lambda_u * loss_unsup + self.policy.penalty(strong, weight)
        return StepOutput(loss, logs, h[: len(logits)].detach())

    @property
    def encoder(self) -> nn.Module:
        return self.ema_backbone

    def logits(self, batch: Batch) -> Tensor:
        return self.ema_head(self(batch))
