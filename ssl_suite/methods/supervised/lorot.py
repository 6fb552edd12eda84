"""LoRot: turn a patch of the training picture and tell, beside the class, how it was turned.

Idea: turning the whole picture moves the training data away from what is to be classified. A turned patch leaves most of
the picture as it is, so that one forward serves class and turn, and the network must look at more than the most telling part.

Paper: Moon, Kim and Heo, "Tailoring Self-Supervision for Supervised Learning", ECCV 2022, arXiv 2207.10023. ``implicit``
(LoRot-I) turns a square of any place and of a side between 2 pixels and half the picture, and asks for the turn;
``explicit`` (LoRot-E) turns one of four quadrants and asks for quadrant and turn, label 4 q + k. As in the official code it
is done to the standardised picture after all other augmentation, and not at test time.

Deviations: LoRot-I draws the square for every sample where the official code draws one for the batch, and squares may touch
the last row and column, which its draw leaves out. The class loss is cross-entropy; the paper's long-tail recipe (LDAM,
deferred re-weighting) is left out. ``whole`` turns the entire picture: the comparison that the paper argues against.

Batch: ``x`` (B, C, H, W), ``y`` (B,), ``index`` (B,), with ``epoch`` where present.

Known limits: in short runs it costs accuracy; the published gains come with long training (``docs/results.md``). Nothing
that changes a turn, as a flip, may follow it.
"""

from __future__ import annotations

from typing import Literal, Unpack

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_suite.batch import Backbone, Batch, StepOutput, Tags
from ssl_suite.functional.random import Draw
from ssl_suite.functional.rotation import rotate_patch
from ssl_suite.method import Method, Training
from ssl_suite.views import Views

PATCH_STREAM = 100
LABELS = {"implicit": 4, "explicit": 16, "whole": 4}


def turned_patch(x: Tensor, draw: Draw, variant: str) -> tuple[Tensor, Tensor]:
    """Pictures with one square of each turned, and what is to be told of it.

    Args:
        x: pictures (B, C, H, W); where they are not square, sides are halves of the shorter and quadrants keep to the corners.
        draw: random numbers of each picture.
        variant: ``implicit``, ``explicit`` or ``whole``.

    Returns:
        Pictures like ``x`` and labels (B,): the quarter turns k counter-clockwise, or 4 q + k with the quadrant q counted
        from the top left by rows.
    """
    height, width = x.shape[2:]
    turns, half = draw.integers(4), min(height, width) // 2
    if variant == "implicit":
        side = 2 + draw.integers(max(1, half - 1))
        top, left = ((draw.uniform() * (extent - side + 1)).long() for extent in (height, width))
        return rotate_patch(x, top, left, side, turns), turns
    if variant == "explicit":
        quadrant, side = draw.integers(4), torch.full_like(turns, half)
        top, left = (quadrant // 2) * (height - half), (quadrant % 2) * (width - half)
        return rotate_patch(x, top, left, side, turns), 4 * quadrant + turns
    side = torch.full_like(turns, min(height, width))
    return rotate_patch(x, torch.zeros_like(turns), torch.zeros_like(turns), side, turns), turns


class LoRot(Method):
    """Supervised training with the turn of a patch as a second task.

    Args:
        backbone: any backbone for pictures.
        views: kind ``weak`` is used; the patch is turned on top of it.
        num_classes: number of classes.
        variant: ``implicit`` (LoRot-I), ``explicit`` (LoRot-E), or ``whole``, which turns all of the picture.
        weight: weight of the second task; the paper: 0.1 on long-tailed data, 0.5 for finding unknown classes.
        training: optimizer and schedule; see `Method`. The paper: SGD, rate 0.1, momentum 0.9, decay 2e-4, 200 epochs.
    """

    tags = Tags("Moon et al., ECCV 2022, arXiv 2207.10023", "supervised", modalities=("images",), batch="labeled",
                views=("weak",), target="class")

    def __init__(self, backbone: Backbone, views: Views, *, num_classes: int,
                 variant: Literal["implicit", "explicit", "whole"] = "explicit", weight: float = 0.1,
                 **training: Unpack[Training]) -> None:
        super().__init__(backbone, views, **training)
        self.head = nn.Linear(backbone.num_features, num_classes)
        self.turn_head = nn.Linear(backbone.num_features, LABELS[variant])
        self.variant, self.weight = variant, weight

    def turned(self, x: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """Samples with a turned patch, and its label."""
        return turned_patch(x, self.views.draw(batch, PATCH_STREAM), self.variant)

    def step(self, batch: Batch) -> StepOutput:
        x, label = self.turned(self.views(batch, "weak")[0], batch)
        h = self.backbone(x)
        turn = self.turn_head(h)
        loss_class, loss_turn = F.cross_entropy(self.head(h), batch["y"]), F.cross_entropy(turn, label)
        logs = {"loss_class": loss_class.detach(), "loss_turn": loss_turn.detach(),
                "turn_accuracy": (turn.detach().argmax(1) == label).float().mean()}
        return StepOutput(loss_class + self.weight * loss_turn, logs, h.detach())

    def logits(self, batch: Batch) -> Tensor:
        return self.head(self(batch))

    def score(self, batch: Batch) -> dict[str, tuple[Tensor, int]]:
        """Accuracy on the pictures as they are, and of the turn when a patch is turned."""
        x, label = self.turned(self.views(batch, "clean")[0], batch)
        right = (self.turn_head(self.backbone(x)).argmax(1) == label).sum()
        return {**super().score(batch), "turn_accuracy": (right, len(label))}
