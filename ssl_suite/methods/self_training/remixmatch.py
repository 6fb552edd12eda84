"""ReMixMatch: MixMatch whose guess is aligned to the classes of the labels and anchors several strong views.

Idea: the guess on the weak view alone is trusted, made as common as its class is among the labels, and given to strong
views of the sample, which are then mixed with all other rows. Turning pictures keeps the network busy meanwhile.

Paper: Berthelot et al., "ReMixMatch: Semi-Supervised Learning with Distribution Alignment and Augmentation Anchoring",
ICLR 2020, arXiv 1911.09785, algorithm 1. As in the official code labelled rows are strong views too, the ramp holds the
two losses on guesses and not that of the turned pictures, the running statistics of BatchNorm are those of mixed rows,
and averaged weights are evaluated.

Deviations: the strong view is what the data configuration says, not the learnt CTAugment. The mean guess is a running one
that a step moves before it is used, in place of the mean over the last 128 steps; that of the labels starts from uniform
(see `Alignment`). Mixed rows share one forward; the views that are not mixed and the turned ones have forwards of their
own that leave the running statistics alone. Ramp, moving average and several processes are as in `MixMatch`.

The loss of turned pictures belongs to square pictures and is left out elsewhere: waveforms and series have no such turns,
their likeness (to run a series backwards, say) may well change the class, and the paper offers none.

Batch: ``labeled`` with ``x`` (B, ...), ``y`` (B,), ``index``; ``unlabeled`` with ``x`` (M, ...), ``index``; both with
``epoch`` and ``length`` where present. Rows of different T are padded to the longer, and mixed rows are that long.

Known limits: B + (3 + ``strong_views``) M rows a step. Waveforms that are mixed sound at once: in the USB benchmark's
results on GTZAN (100 labels) it does not learn at all. The ramp follows the trainer: a step outside of one has no loss on
guesses.
"""

from __future__ import annotations

from typing import Unpack

import torch.nn.functional as F
from torch import Tensor, nn

from ssl_suite.batch import Backbone, Batch, Spec, StepOutput, Tags
from ssl_suite.functional.pseudo_labels import linear_ramp, sharpen
from ssl_suite.method import Training
from ssl_suite.methods.adaptation.ttt import rotate
from ssl_suite.methods.self_training.mixmatch import MixMatch
from ssl_suite.methods.self_training.policies import Alignment
from ssl_suite.nn.norm import frozen_statistics
from ssl_suite.views import Views

TURNS_STREAM = 200


class ReMixMatch(MixMatch):
    """Mixup of labelled rows and of weak and strong views with aligned, sharpened guesses.

    Args:
        backbone: any backbone.
        views: kind ``strong`` for labelled samples, ``weak`` and ``strong`` for unlabelled ones.
        spec: what the samples look like; square pictures are turned.
        num_classes: number of classes.
        lambda_u: weight of the loss on mixed unlabelled rows.
        lambda_strong: weight of the loss on the first strong view, not mixed.
        lambda_rot: weight of the loss on turned pictures.
        strong_views: strong views of an unlabelled sample, at least 1; the example of the official code has 4.
        align_momentum: momentum of the running means that guesses are aligned by, in [0, 1].
        rampup: share of the run in which the weights of losses on guesses rise, in [0, 1].
        temperature: of the guesses; above 0, below 1 sharpens.
        mixup: parameter of the Beta distribution of the mixing shares, above 0.
        ema_decay: momentum of the averaged weights.
        training: optimizer and schedule; see `Method`.

    Raises:
        ValueError: an argument lies outside of its range.
    """

    tags = Tags("Berthelot et al., ICLR 2020, arXiv 1911.09785", "self_training", batch="semi", views=("weak", "strong"),
                target="class")

    def __init__(self, backbone: Backbone, views: Views, *, spec: Spec, num_classes: int, lambda_u: float = 1.5,
                 lambda_strong: float = 0.5, lambda_rot: float = 0.5, strong_views: int = 2, align_momentum: float = 0.999,
                 rampup: float = 1 / 64, temperature: float = 0.5, mixup: float = 0.75, ema_decay: float = 0.999,
                 **training: Unpack[Training]) -> None:
        super().__init__(backbone, views, num_classes=num_classes, lambda_u=lambda_u, rampup=rampup, temperature=temperature,
                         mixup=mixup, ema_decay=ema_decay, **training)
        if strong_views < 1:
            raise ValueError(f"model.strong_views must be at least 1, got {strong_views}")
        self.turns = spec.modality == "images" and spec.shape[1] == spec.shape[2]
        if self.turns:
            self.rotation_head = nn.Linear(backbone.num_features, 4)
        self.align = Alignment(num_classes, align_momentum)
        self.lambda_strong, self.lambda_rot, self.strong_views = lambda_strong, lambda_rot, strong_views

    def rotation_loss(self, batch: Batch, x: Tensor) -> Tensor:
        """Cross-entropy of the quarter turn drawn for each picture (M, C, S, S); 0 where samples cannot be turned."""
        if not self.turns:
            return x.new_zeros(())
        turns = self.views.draw(batch, TURNS_STREAM).integers(4, 1)[:, 0]
        return F.cross_entropy(self.rotation_head(self.backbone(rotate(x, turns))), turns)

    def step(self, batch: Batch) -> StepOutput:
        labeled, unlabeled = batch["labeled"], batch["unlabeled"]
        (anchored,) = self.views(labeled, "strong")
        weak, *strong = self.views(unlabeled, "weak", *["strong"] * self.strong_views)
        given = F.one_hot(labeled["y"], self.num_classes).to(weak.dtype)
        guess = sharpen(self.align(self.guess([weak], unlabeled.get("length")), given), self.temperature)
        others = [weak, *strong]
        h, logits, target = self.mixed([labeled, *[unlabeled] * len(others)], [anchored, *others], [given, *[guess] * len(others)])
        with frozen_statistics(self):
            loss_strong = F.cross_entropy(self.head(self.backbone(strong[0], unlabeled.get("length"))), guess)
            loss_rot = self.rotation_loss(unlabeled, strong[0])

        size = len(given)
        loss_sup, loss_unsup = (F.cross_entropy(logits[rows], target[rows]) for rows in (slice(size), slice(size, None)))
        ramp = linear_ramp(self.progress, 0.0, self.rampup)
        loss = loss_sup + ramp * (self.lambda_u * loss_unsup + self.lambda_strong * loss_strong) + self.lambda_rot * loss_rot
        logs = {"loss_sup": loss_sup, "loss_unsup": loss_unsup, "loss_strong": loss_strong, "loss_rot": loss_rot}
        return StepOutput(loss, {name: value.detach() for name, value in logs.items()}, h[:size].detach())
