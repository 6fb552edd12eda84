"""Self-supervised label augmentation: tell the class and the transformation of a picture by one joint label.

Idea: a classifier that is shown transformed pictures under their old labels must become blind to the transformation, and a
six is a turned nine. Predicting class and transformation together asks for no such blindness, and at test time the votes of
all transformed copies can be added up, or taught to a plain head.

Paper: Lee, Hwang and Shin, "Self-supervised Label Augmentation via Input Transformations", ICML 2020, arXiv 1910.05872. As
in the official code the joint index is class * M + transformation, votes are averaged as logits, the plain head gets
cross-entropy and KL with equal weights, and the KL is averaged over the batch. ``mode`` has the paper's two baselines.

Deviations: colours change places after standardisation, which gives every channel the same mean and spread. The factor M on
the joint loss that the official code takes for ImageNet is a matter of the rate here.

Batch: ``x`` (B, C, H, W), ``y`` (B,), ``index`` (B,), with ``epoch`` where present.

Known limits: M times the cost per step, so compare with a baseline of as many steps and with one of as much compute. Adding
up votes costs M passes at test time; ``distill`` gives them to one. Quarter turns need square pictures.
"""

from __future__ import annotations

from itertools import permutations
from typing import Literal, Unpack

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_suite.batch import Backbone, Batch, StepOutput, Tags
from ssl_suite.method import Method, Training
from ssl_suite.views import Views

ORDERS = {1: ((0, 1, 2),), 3: ((0, 1, 2), (1, 2, 0), (2, 0, 1)), 6: tuple(permutations(range(3)))}


def transformed(x: Tensor, turns: int, colours: int) -> Tensor:
    """Every picture in all its M = turns * colours forms, the first being itself.

    Args:
        x: pictures (B, C, H, W).
        turns: 4 for quarter turns, 2 for half turns, 1 for none.
        colours: 6 for all orders of three channels, 3 for the cyclic ones, 1 for none.

    Returns:
        (B * M, C, H, W), the forms of one picture next to each other; form j is turn ``j // colours``, order ``j % colours``.

    Raises:
        ValueError: quarter turns of pictures that are not square, or colours of pictures without three channels.
    """
    if turns == 4 and x.shape[2] != x.shape[3]:
        raise ValueError(f"quarter turns need square pictures (B, C, S, S), got {tuple(x.shape)}; set model.turns=2")
    if colours > 1 and x.shape[1] != 3:
        raise ValueError(f"model.colours={colours} needs three channels, got pictures {tuple(x.shape)}; set model.colours=1")
    turned = [torch.rot90(x, k * 4 // turns, (2, 3)) for k in range(turns)]
    return torch.stack([t[:, order] if colours > 1 else t for t in turned for order in ORDERS[colours]], 1).flatten(0, 1)


def aggregate(joint: Tensor, forms: int) -> Tensor:
    """Mean over the forms of the logits that each gives to its own form (equation 4).

    Args:
        joint: logits (B * M, K * M) of all forms of each picture, ordered as `transformed` does.
        forms: number of forms M.

    Returns:
        Class logits, (B, K).
    """
    table = joint.view(-1, forms, joint.shape[1] // forms, forms)  # picture, form, class, form that is claimed
    return table.diagonal(dim1=1, dim2=3).mean(2)


class LabelAugmentation(Method):
    """Classification over pairs of class and transformation.

    Args:
        backbone: any backbone for pictures.
        views: kind ``weak`` is used.
        num_classes: number of classes K.
        turns: 4 quarter turns, 2 half turns, or 1 for none.
        colours: 6 orders of the channels, the 3 cyclic ones, or 1 for none.
        mode: ``joint`` labels; or a baseline: ``invariant`` gives all forms the class alone (augmentation), ``multitask``
            tells class and form by two heads.
        distill: teach the joint head's added votes to a plain head, which then predicts (SLA+SD).
        temperature: softens both sides of that lesson; above 0.
        training: optimizer and schedule; see `Method`. The paper: SGD, rate 0.1, momentum 0.9, decay 1e-4.

    Raises:
        ValueError: unknown numbers of turns or colours, a single form, or ``distill`` without joint labels.
    """

    tags = Tags("Lee et al., ICML 2020, arXiv 1910.05872", "supervised", modalities=("images",), batch="labeled",
                views=("weak",), target="class")

    def __init__(self, backbone: Backbone, views: Views, *, num_classes: int, turns: int = 4, colours: int = 1,
                 mode: Literal["joint", "invariant", "multitask"] = "joint", distill: bool = False,
                 temperature: float = 1.0, **training: Unpack[Training]) -> None:
        super().__init__(backbone, views, **training)
        if turns not in (1, 2, 4) or colours not in ORDERS or turns * colours == 1:
            raise ValueError(f"model.turns={turns} must be 1, 2 or 4 and model.colours={colours} 1, 3 or 6, not both 1")
        if (distill and mode != "joint") or temperature <= 0.0:
            raise ValueError(f"model.distill={distill} needs model.mode=joint, not {mode}, and model.temperature={temperature} "
                             "must be above 0")
        self.turns, self.colours, self.forms, self.mode, self.temperature = turns, colours, turns * colours, mode, temperature
        self.head = nn.Linear(backbone.num_features, num_classes * (self.forms if mode == "joint" else 1))
        self.form_head = nn.Linear(backbone.num_features, self.forms) if mode == "multitask" else None
        self.plain_head = nn.Linear(backbone.num_features, num_classes) if distill else None

    def step(self, batch: Batch) -> StepOutput:
        (x,), y = self.views(batch, "weak"), batch["y"]
        h = self.backbone(transformed(x, self.turns, self.colours))
        logits, each = self.head(h), y.repeat_interleave(self.forms)
        form = torch.arange(self.forms, device=y.device).repeat(len(y))
        loss = F.cross_entropy(logits, each * self.forms + form if self.mode == "joint" else each)
        logs = {"loss_labels": loss.detach()}
        if self.form_head is not None:
            loss = loss + F.cross_entropy(self.form_head(h), form)
        if self.plain_head is not None:
            plain = self.plain_head(h[:: self.forms])
            lesson = self.lesson(plain, aggregate(logits, self.forms))
            loss = loss + F.cross_entropy(plain, y) + lesson
            logs["loss_lesson"] = lesson.detach()
        return StepOutput(loss, logs, h[:: self.forms].detach())

    def lesson(self, plain: Tensor, votes: Tensor) -> Tensor:
        """T^2 KL(votes || plain) at temperature T; the votes get no gradient."""
        target = (votes.detach().float() / self.temperature).log_softmax(1)
        said = (plain.float() / self.temperature).log_softmax(1)
        return self.temperature**2 * F.kl_div(said, target, reduction="batchmean", log_target=True)

    def single(self, h: Tensor) -> Tensor:
        """Class logits (B, K) of the joint head for the untransformed picture, taken as such."""
        return self.head(h)[:, :: self.forms]

    def aggregated(self, batch: Batch) -> Tensor:
        """Class logits (B, K) with the votes of all forms."""
        (x,) = self.views(batch, "clean")
        return aggregate(self.head(self.backbone(transformed(x, self.turns, self.colours))), self.forms)

    def logits(self, batch: Batch) -> Tensor:
        if self.plain_head is not None:
            return self.plain_head(self(batch))
        return self.aggregated(batch) if self.mode == "joint" else self.head(self(batch))

    def score(self, batch: Batch) -> dict[str, tuple[Tensor, int]]:
        """Accuracy of what predicts; with joint labels also of one pass (``single``) and of all votes (``aggregated``)."""
        if self.mode != "joint":
            return super().score(batch)
        h, votes, y = self(batch), self.aggregated(batch), batch["y"]
        answers = {"accuracy": votes if self.plain_head is None else self.plain_head(h), "accuracy_single": self.single(h),
                   "accuracy_aggregated": votes}
        return {name: ((logits.argmax(1) == y).sum(), len(y)) for name, logits in answers.items()}
