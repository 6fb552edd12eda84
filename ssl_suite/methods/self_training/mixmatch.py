"""MixMatch: guessed labels, averaged over views and sharpened, are mixed with the given ones as if they were the same.

Idea: agreement between views, low entropy and straight lines between samples in one target. Guess the label of an
unlabelled sample from several views, sharpen it, then mix all rows, labelled or not, with one another.

Paper: Berthelot et al., "MixMatch: A Holistic Approach to Semi-Supervised Learning", NeurIPS 2019, arXiv 1905.02249,
algorithm 1, equations 2 to 5. As in the official code two views are guessed from, each row has a mixing share of its own,
the running statistics of BatchNorm are those of mixed rows, and averaged weights are evaluated.

Deviations: the guess is made on both views in one forward, and all mixed rows share another, labelled and unlabelled ones
side by side: what the official code reaches by interleaving batches. The official ramp, 1/64 of its run, is given as a
share, ``rampup``. The moving average is warmed up, momentum min(1 - 1/(t + 1), ``ema_decay``). Several processes mix
their own rows only.

Batch: ``labeled`` with ``x`` (B, ...), ``y`` (B,), ``index``; ``unlabeled`` with ``x`` (M, ...), ``index``; both with
``epoch`` and ``length`` where present. Rows of different T are padded to the longer, and mixed rows are that long.

Known limits: it asks the guess to hold for weak views only. Waveforms that are mixed sound at once: in the USB benchmark's
results on GTZAN (100 labels) it stands far behind supervised training, with 74.6 % errors against 52.7 %. The ramp follows
the trainer: a step outside of one has no unlabelled loss.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Unpack

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_suite.batch import Backbone, Batch, StepOutput, Tags
from ssl_suite.functional.ema import make_teacher
from ssl_suite.functional.pseudo_labels import concat_rows, linear_ramp, sharpen
from ssl_suite.functional.random import Draw
from ssl_suite.method import Method, Training
from ssl_suite.nn.mixup import Mixup
from ssl_suite.nn.norm import frozen_statistics
from ssl_suite.views import Views

MIXING_STREAM = 100


class MixMatch(Method):
    """Mixup of labelled rows and of unlabelled ones with sharpened guesses.

    Args:
        backbone: any backbone.
        views: kind ``weak``, once for labelled and twice for unlabelled samples.
        num_classes: number of classes.
        lambda_u: weight of the unlabelled loss at the end of the ramp.
        rampup: share of the run in which the weight rises, in [0, 1].
        temperature: of the guesses; above 0, below 1 sharpens.
        mixup: parameter of the Beta distribution of the mixing shares, above 0.
        ema_decay: momentum of the averaged weights.
        training: optimizer and schedule; see `Method`.

    Raises:
        ValueError: an argument lies outside of its range.
    """

    tags = Tags("Berthelot et al., NeurIPS 2019, arXiv 1905.02249", "self_training", batch="semi", views=("weak", "weak"),
                target="class")
    teachers = {"ema_backbone": "backbone", "ema_head": "head"}

    def __init__(self, backbone: Backbone, views: Views, *, num_classes: int, lambda_u: float = 100.0, rampup: float = 1 / 64,
                 temperature: float = 0.5, mixup: float = 0.5, ema_decay: float = 0.999, **training: Unpack[Training]) -> None:
        super().__init__(backbone, views, **training)
        if not 0.0 <= rampup <= 1.0:
            raise ValueError(f"model.rampup={rampup} is a share of the run and must lie in [0, 1]")
        if temperature <= 0.0:
            raise ValueError(f"model.temperature must be above 0, got {temperature}")
        self.head = nn.Linear(backbone.num_features, num_classes)
        self.ema_backbone, self.ema_head = make_teacher(self.backbone), make_teacher(self.head)
        self.mix, self.num_classes = Mixup(mixup), num_classes
        self.lambda_u, self.rampup, self.temperature, self.ema_decay = lambda_u, rampup, temperature, ema_decay

    def momentum(self, step: int, total: int) -> float:
        return min(1.0 - 1.0 / (step + 1), self.ema_decay)

    @torch.no_grad()
    def guess(self, views: Sequence[Tensor], length: Tensor | None) -> Tensor:
        """Probabilities (M, K), averaged over views (M, ...) of the same samples; statistics of BatchNorm stay."""
        with frozen_statistics(self):
            logits = self.head(self.backbone(*concat_rows(views, [length] * len(views))))
        return logits.float().softmax(1).view(len(views), -1, self.num_classes).mean(0)

    def mixed(self, parts: Sequence[Batch], views: Sequence[Tensor], targets: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Views of several parts, mixed with one another.

        Args:
            parts: where each view is from.
            views: views (B_i, ...) of the parts.
            targets: distributions (B_i, K).

        Returns:
            Representations (sum B_i, D), logits and mixed targets (sum B_i, K).
        """
        rows, length = concat_rows(views, [part.get("length") for part in parts])
        draw = Draw(torch.cat([self.views.draw(part, MIXING_STREAM + i).keys for i, part in enumerate(parts)]))
        rows, target, length = self.mix(rows, torch.cat([*targets]), length, draw)
        h = self.backbone(rows, length)
        return h, self.head(h), target

    def step(self, batch: Batch) -> StepOutput:
        labeled, unlabeled = batch["labeled"], batch["unlabeled"]
        views = [*self.views(labeled, "weak"), *self.views(unlabeled, "weak", "weak")]
        guess = sharpen(self.guess(views[1:], unlabeled.get("length")), self.temperature)
        given = F.one_hot(labeled["y"], self.num_classes).to(guess.dtype)
        h, logits, target = self.mixed([labeled, unlabeled, unlabeled], views, [given, guess, guess])

        size = len(given)
        loss_sup = F.cross_entropy(logits[:size], target[:size])
        loss_unsup = F.mse_loss(logits[size:].float().softmax(1), target[size:])
        loss = loss_sup + self.lambda_u * linear_ramp(self.progress, 0.0, self.rampup) * loss_unsup
        return StepOutput(loss, {"loss_sup": loss_sup.detach(), "loss_unsup": loss_unsup.detach()}, h[:size].detach())

    @property
    def encoder(self) -> nn.Module:
        return self.ema_backbone

    def logits(self, batch: Batch) -> Tensor:
        return self.ema_head(self(batch))
