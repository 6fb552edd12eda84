"""Pi-model: the network should say the same of two views of a sample, labelled or not.

Idea: a prediction that changes with noise is not to be trusted; asking for agreement spreads the labels to their
neighbourhood.

Paper: Laine and Aila, "Temporal Ensembling for Semi-Supervised Learning", ICLR 2017, arXiv 1610.02242, algorithm 1: the
squared difference of the two predictions, averaged over labelled and unlabelled rows and over classes, with gradient
through both; the ramp is exp(-5 (1 - t)^2).

Deviations: the ramp of 80 epochs is given as a share of the run, ``rampup``; 0.4 is the USB benchmark's, whose ramp is a
straight line. The weight of 10 is its, too, but it lets the gradient through one view only, where the same weight pulls
half as hard. The noise is that of the views; dropout is the backbone's business.

Batch: ``labeled`` with ``x`` (B, ...), ``y`` (B,), ``index``; ``unlabeled`` with ``x`` (M, ...), ``index``; both with
``epoch`` and ``length`` where present. Labelled and unlabelled rows of different T are padded to the longer.

Known limits: it learns only from what the views change, and an answer that is the same for all samples agrees with
itself. The ramp follows the trainer: a step outside of one uses the weight at the start of the run.
"""

from __future__ import annotations

from typing import Unpack

import torch.nn.functional as F
from torch import Tensor, nn

from ssl_suite.batch import Backbone, Batch, StepOutput, Tags
from ssl_suite.functional.pseudo_labels import concat_rows, probability_mse, sigmoid_ramp
from ssl_suite.method import Method, Training
from ssl_suite.views import Views


class PiModel(Method):
    """Supervised training plus agreement between two views.

    Args:
        backbone: any backbone.
        views: kind ``weak`` is drawn twice for every sample.
        num_classes: number of classes.
        weight: weight of the consistency at the end of the ramp.
        rampup: share of the run in which the weight rises, in [0, 1].
        training: optimizer and schedule; see `Method`.

    Raises:
        ValueError: ``rampup`` lies outside [0, 1].
    """

    tags = Tags("Laine and Aila, ICLR 2017, arXiv 1610.02242", "self_training", batch="semi", views=("weak", "weak"),
                target="class")

    def __init__(self, backbone: Backbone, views: Views, *, num_classes: int, weight: float = 10.0, rampup: float = 0.4,
                 **training: Unpack[Training]) -> None:
        super().__init__(backbone, views, **training)
        if not 0.0 <= rampup <= 1.0:
            raise ValueError(f"model.rampup={rampup} is a share of the run and must lie in [0, 1]")
        self.head = nn.Linear(backbone.num_features, num_classes)
        self.weight, self.rampup = weight, rampup

    def step(self, batch: Batch) -> StepOutput:
        labeled, unlabeled = batch["labeled"], batch["unlabeled"]
        pairs = zip(*(self.views(part, *self.tags.views) for part in (labeled, unlabeled)), strict=True)
        lengths = [labeled.get("length"), unlabeled.get("length")]
        (h, first), (_, second) = ((h, self.head(h)) for h in (self.backbone(*concat_rows(pair, lengths)) for pair in pairs))

        size = len(labeled["y"])
        loss_sup, loss_unsup = F.cross_entropy(first[:size], labeled["y"]), probability_mse(first, second)
        loss = loss_sup + self.weight * sigmoid_ramp(self.progress, self.rampup) * loss_unsup
        return StepOutput(loss, {"loss_sup": loss_sup.detach(), "loss_unsup": loss_unsup.detach()}, h[:size].detach())

    def logits(self, batch: Batch) -> Tensor:
        return self.head(self(batch))
