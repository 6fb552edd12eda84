"""Pseudo-Label: the model's own best guess on an unlabelled sample is taken for its label.

Idea: training on its own guesses pushes the decision boundary out of dense regions (entropy minimisation). The guesses
are bad at first, so their weight rises only after a while.

Paper: Lee, "Pseudo-Label: The Simple and Efficient Semi-Supervised Learning Method for Deep Neural Networks", ICML 2013
workshop, equations 15 and 16.

Deviations: the ramp's corners T1 = 100 and T2 = 600 are given as shares of the run, 0.1 and 0.6, so that short runs
keep its shape. ``threshold`` (0 = the paper, which believes every guess) is the variant of the USB benchmark (arXiv
2208.07204; there 0.95). As in USB the unlabelled pass leaves BatchNorm's running statistics alone; the paper's
networks had no BatchNorm.

Batch: ``labeled`` with ``x`` (B, ...), ``y`` (B,), ``index``; ``unlabeled`` with ``x`` (M, ...), ``index``; both with
``epoch`` and ``length`` where present.

Known limits: with few labels wrong guesses confirm themselves; FixMatch is far better there. The ramp follows the
trainer: a step taken outside of one uses the weight at the start of the run.
"""

from __future__ import annotations

from typing import Unpack

import torch.nn.functional as F
from torch import Tensor, nn

from ssl_suite.batch import Backbone, Batch, StepOutput, Tags
from ssl_suite.functional.pseudo_labels import consistency_loss, linear_ramp
from ssl_suite.method import Method, Training
from ssl_suite.methods.self_training.policies import FixedThreshold
from ssl_suite.nn.norm import frozen_statistics
from ssl_suite.views import Views


class PseudoLabel(Method):
    """Supervised training plus training on the model's own guesses.

    Args:
        backbone: any backbone.
        views: kind ``weak`` is used for labelled and unlabelled samples.
        num_classes: number of classes.
        alpha: weight of the unlabelled loss at the end of the ramp.
        start: share of the run at which the weight leaves 0.
        end: share of the run at which it reaches ``alpha``.
        threshold: least confidence of a guess that is used.
        training: optimizer and schedule; see `Method`.
    """

    tags = Tags("Lee, ICML 2013 workshop", "self_training", batch="semi", views=("weak",), target="class")

    def __init__(self, backbone: Backbone, views: Views, *, num_classes: int, alpha: float = 3.0, start: float = 0.1,
                 end: float = 0.6, threshold: float = 0.0, **training: Unpack[Training]) -> None:
        super().__init__(backbone, views, **training)
        if not 0.0 <= start <= end:
            raise ValueError(f"the ramp needs 0 <= start <= end, got start={start} and end={end}")
        self.head = nn.Linear(backbone.num_features, num_classes)
        self.policy = FixedThreshold(threshold)
        self.alpha, self.start, self.end = alpha, start, end

    def step(self, batch: Batch) -> StepOutput:
        labeled, unlabeled = batch["labeled"], batch["unlabeled"]
        h = self.backbone(self.views(labeled, "weak")[0], labeled.get("length"))
        loss_sup = F.cross_entropy(self.head(h), labeled["y"])
        with frozen_statistics(self):
            logits = self.head(self.backbone(self.views(unlabeled, "weak")[0], unlabeled.get("length")))
        target, weight = self.policy(logits.detach().float().softmax(1))
        loss_unsup = consistency_loss(logits, target, weight)
        loss = loss_sup + self.alpha * linear_ramp(self.progress, self.start, self.end) * loss_unsup
        logs = {"loss_sup": loss_sup.detach(), "loss_unsup": loss_unsup.detach(), "mask_ratio": weight.mean()}
        return StepOutput(loss, logs, h.detach())

    def logits(self, batch: Batch) -> Tensor:
        return self.head(self(batch))
