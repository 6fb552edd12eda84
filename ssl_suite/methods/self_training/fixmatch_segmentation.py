"""FixMatch for masks: what the model says surely of a pixel must hold in a strong view, cut and pasted; with pseudo-masks, too.

Idea: the guess on the weak view becomes the mask of the strong view, pixel by pixel, where the model is sure. Beside it the student
may learn masks that an earlier model guessed for whole pictures: self-training and consistency in one stage.

Paper: FixMatch (NeurIPS 2020, arXiv 2001.07685) as Yang et al. run it for masks, "Revisiting Weak-to-Strong Consistency in
Semi-Supervised Semantic Segmentation", CVPR 2023, arXiv 2208.09910. With pseudo-masks it is the student of the redesigned
self-training for white blood cells, arXiv 2401.07278; with pseudo-masks and ``lambda_u=0`` that of ST++ (CVPR 2022, arXiv
2106.05095). The loss is the mean of the terms at work: labelled, pseudo-labelled, ``lambda_u`` x consistency. The consistency is
summed over the pixels believed and divided by all pixels that show something of the picture. As in the official codes labelled,
weak and pseudo-labelled rows share a forward in training mode, and the strong rows of the consistency have one of their own.

Deviations: what is pasted (``mix="cutmix"``, into half of the strong views) comes from a neighbour in the batch and not from a
second unlabelled batch, whose guesses are made in evaluation mode; so its guess is that of the step. ``mix="classmix"`` pastes
half of the guessed classes instead (arXiv 2007.07936). Which pixels are believed is an object (``policy``), as for FixMatch. The
paper on white blood cells has no public code; what its stages share with ST++ is taken from that code. ST++'s plain mean over
labelled and pseudo-labelled pictures is here a mean over two halves.

Batch: ``labeled`` with ``x`` (B, C, H, W), ``y`` (B, H, W), ``index``; ``unlabeled`` with ``x`` (M, C, H, W), ``index`` and, where
an earlier model guessed, ``pseudo`` (M, H, W), 255 where it did not; both with ``epoch`` where present.

Known limits: FlexMatch remembers samples and not pixels, and is refused. Statistics of a policy include pixels outside of the
picture. With four labelled pictures a run may fail altogether: report several seeds.
"""

from __future__ import annotations

from typing import Literal, Unpack

import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_suite.batch import Backbone, Batch, StepOutput, Tags
from ssl_suite.functional.mixing import class_regions, cutmix_boxes, partners, paste
from ssl_suite.functional.segmentation import IGNORE, masked_mean, pixel_loss, to_rows
from ssl_suite.method import Method, Training
from ssl_suite.methods.self_training.policies import FixedThreshold, FlexMatch, Policy
from ssl_suite.nn.heads import PixelHead
from ssl_suite.views import Views

Mix = Literal["cutmix", "classmix", "none"]
BOXES = 100
"""Stream of the draws of what is pasted."""


class FixMatchSegmentation(Method):
    """Cross-entropy on labelled pictures, on pseudo-masks where there are any, and between two views of the unlabelled ones.

    Args:
        backbone: one with maps.
        views: kind ``weak`` moves pictures and masks, ``strong`` comes on top of it.
        num_classes: number of classes.
        policy: which guesses count, see `policies`; a fixed threshold of 0.95 by default.
        lambda_u: weight of the consistency; 0 leaves it out.
        mix: what is pasted into the strong views.
        training: optimizer and schedule; see `Method`.

    Raises:
        ValueError: a policy that remembers samples, or an unknown ``mix``.
    """

    tags = Tags("Yang et al., CVPR 2023, arXiv 2208.09910", "self_training", modalities=("images",), batch="semi", backbone="maps",
                views=("weak", "strong"), target="mask")

    def __init__(self, backbone: Backbone, views: Views, *, num_classes: int, policy: Policy | None = None, lambda_u: float = 1.0,
                 mix: Mix = "cutmix", **training: Unpack[Training]) -> None:
        super().__init__(backbone, views, **training)
        if mix not in ("cutmix", "classmix", "none"):
            raise ValueError(f"model.mix must be 'cutmix', 'classmix' or 'none', got {mix!r}")
        if isinstance(policy, FlexMatch):
            raise ValueError("policy=flexmatch remembers samples, and here every pixel is judged; take policy=freematch")
        self.head = PixelHead(backbone.num_features, num_classes)
        self.policy = policy or FixedThreshold()
        self.num_classes, self.lambda_u, self.mix = num_classes, lambda_u, mix

    def step(self, batch: Batch) -> StepOutput:
        labeled, unlabeled = batch["labeled"], batch["unlabeled"]
        x, y = self.views.paired(labeled, "weak")
        rows = {"labeled": x}
        if self.lambda_u:
            rows["weak"], _ = self.views.paired({**unlabeled, "y": None}, "weak")
        if "pseudo" in unlabeled:
            rows["pseudo"], target = self.views.paired({**unlabeled, "y": unlabeled["pseudo"]}, "weak", "strong")
        maps = self.backbone.maps(torch.cat(list(rows.values())))
        out = dict(zip(rows, self.head(maps, x).split([len(part) for part in rows.values()]), strict=True))
        terms = {"loss_sup": pixel_loss(out["labeled"], y)}
        if "pseudo" in rows:
            terms["loss_pseudo"] = pixel_loss(out["pseudo"], target)
        logs = {name: value.detach() for name, value in terms.items()}
        if self.lambda_u:
            loss, logs["mask_ratio"] = self.consistency(unlabeled, out["weak"].detach(), out["labeled"].detach(), y)
            terms["loss_unsup"], logs["loss_unsup"] = self.lambda_u * loss, loss.detach()
        return StepOutput(torch.stack(list(terms.values())).mean(), logs, maps[: len(x)].detach().mean((2, 3)))

    def predict(self, x: Tensor) -> Tensor:
        """Logits (B, K, H, W) of standardised pictures."""
        return self.head(self.backbone.maps(x), x)

    def consistency(self, unlabeled: Batch, guess: Tensor, logits: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Loss of the strong views under the guesses on the weak ones, and the share of the pixels that is believed."""
        strong, inside, target, weight = self.lesson(unlabeled, guess, logits, y)
        return self.believed_loss(self.predict(strong), inside, target, weight), weight.mean()

    def lesson(self, unlabeled: Batch, guess: Tensor, logits: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Strong views with what they are to say.

        Args:
            unlabeled: the unlabelled part of the batch.
            guess: logits of the weak views, (M, K, H, W), detached.
            logits: logits of the labelled pictures, (B, K, H, W), detached.
            y: their targets, (B, H, W).

        Returns:
            Views (M, C, H, W), `IGNORE` where they show nothing of the picture (M, H, W), classes (M, H, W) or probabilities
            (M, K, H, W), and how far each pixel is believed (M, H, W).
        """
        strong, inside = self.views.paired({**unlabeled, "y": None}, "weak", "strong")
        target, weight = self.policy(to_rows(guess.float().softmax(1)), labeled_probs=to_rows(logits.float().softmax(1)),
                                     labels=y.flatten())
        weight, places = weight.view_as(inside), (len(inside), *inside.shape[1:])
        target = target.view(places) if target.ndim == 1 else target.view(*places, -1).movedim(-1, 1)
        if self.mix == "none":
            return strong, inside, target, weight
        draw = self.views.draw(unlabeled, BOXES)
        if self.mix == "cutmix":
            where = cutmix_boxes(draw, *inside.shape[1:])
        else:
            where = class_regions(guess.argmax(1), self.num_classes, draw)[partners(len(guess), guess.device)]
        return paste(strong, where), paste(inside, where), paste(target, where), paste(weight, where)

    def believed_loss(self, predicted: Tensor, inside: Tensor, target: Tensor, weight: Tensor) -> Tensor:
        """Loss of logits (M, K, H, W) under a lesson, over all pixels that show something."""
        loss = masked_mean(F.cross_entropy(predicted, target, reduction="none"), weight, inside != IGNORE)
        return loss + self.policy.penalty(to_rows(predicted), weight.flatten())

    def logits(self, batch: Batch) -> Tensor:
        return self.predict(self.views(batch, "clean")[0])
