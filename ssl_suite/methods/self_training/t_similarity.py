"""T-similarity: several heads on one encoder that are to differ on unlabelled samples; where they still agree, trust them.

Idea: a softmax is sure of itself far from its labels, above all when these were not chosen at random. Heads that fit the
labels equally well and are driven apart elsewhere agree only where the labels leave them no choice: their mean agreement is
a confidence.

Paper: Odonnat, Feofanov and Redko, "Leveraging Ensemble Diversity for Robust Self-Training in the Presence of Sample
Selection Bias", AISTATS 2024, arXiv 2310.14814. As in the official code the heads see features without gradient, so that
diversity never shapes the encoder, and predictions come from a head of their own, whose loss does.

Deviations: unlabelled rows come in batches, where the official loader gives one sample a step; labelled rows are shuffled.

Batch: ``labeled`` with ``x`` (B, ...), ``y`` (B,), ``index``; ``unlabeled`` with ``x`` (M, ...), ``index``; both with
``epoch`` and ``length`` where present. Labelled and unlabelled rows of different T are padded to the longer.

Known limits: the score ranks; it is no probability (an under-confident one at that), so compare by rank and not with a
softmax's threshold. With separable features a large ``diversity`` drives heads to constant classes: ``heads_accuracy`` on the
labels must stay high. It makes no better classifier by itself: the gain is in what is selected with it
(``scripts/t_similarity_digits.py``); the labels it is meant for are drawn by ``data.selection_bias``.
"""

from __future__ import annotations

from typing import Unpack

import torch.nn.functional as F
from torch import Tensor, nn

from ssl_suite.batch import Backbone, Batch, StepOutput, Tags
from ssl_suite.functional.pseudo_labels import concat_rows
from ssl_suite.method import Method, Training
from ssl_suite.views import Views


def t_similarity(logits: Tensor, classwise: bool = False) -> Tensor:
    """Mean inner product of the softmaxes of every two different heads (equation 1), in time linear in their number.

    Args:
        logits: (H, B, K) of H >= 2 heads.
        classwise: keep the K products apart.

    Returns:
        (B,), or (B, K), in [0, 1]: 1 where all are sure of one class, 1 / K where none is of any.
    """
    p = logits.float().softmax(2)
    products = (p.sum(0).square() - p.square().sum(0)) / (len(p) * (len(p) - 1))
    return products if classwise else products.sum(1)


class TSimilarity(Method):
    """Supervised training beside an ensemble of heads whose agreement is a confidence.

    Args:
        backbone: any backbone.
        views: kind ``weak`` is used for all samples.
        num_classes: number of classes.
        heads: number of heads besides the one that predicts; at least 2.
        diversity: weight of the agreement on unlabelled samples, which is made small.
        training: optimizer and schedule; see `Method`. The paper: Adam, rate 1e-3.

    Raises:
        ValueError: fewer than two heads.
    """

    tags = Tags("Odonnat et al., AISTATS 2024, arXiv 2310.14814", "self_training", batch="semi", views=("weak",), target="class")

    def __init__(self, backbone: Backbone, views: Views, *, num_classes: int, heads: int = 5, diversity: float = 1.0,
                 **training: Unpack[Training]) -> None:
        super().__init__(backbone, views, **training)
        if heads < 2:
            raise ValueError(f"model.heads={heads}: agreement needs at least 2 heads")
        self.head = nn.Linear(backbone.num_features, num_classes)
        self.ensemble = nn.Linear(backbone.num_features, heads * num_classes)  # all heads in one product
        self.heads, self.diversity = heads, diversity

    def votes(self, h: Tensor) -> Tensor:
        """Logits (H, B, K) of every head; no gradient reaches ``h`` (B, D)."""
        return self.ensemble(h.detach()).view(len(h), self.heads, -1).transpose(0, 1)

    def step(self, batch: Batch) -> StepOutput:
        labeled, unlabeled = batch["labeled"], batch["unlabeled"]
        views = [*self.views(labeled, "weak"), *self.views(unlabeled, "weak")]
        h = self.backbone(*concat_rows(views, [part.get("length") for part in (labeled, unlabeled)]))
        votes, y, size = self.votes(h), labeled["y"], len(labeled["y"])
        loss_sup = F.cross_entropy(self.head(h[:size]), y)
        loss_heads = F.cross_entropy(votes[:, :size].flatten(0, 1), y.repeat(self.heads))
        agreement = t_similarity(votes[:, size:]).mean()
        logs = {"loss_sup": loss_sup.detach(), "loss_heads": loss_heads.detach(), "agreement": agreement.detach(),
                "heads_accuracy": (votes[:, :size].argmax(2) == y).float().mean()}
        return StepOutput(loss_sup + loss_heads + self.diversity * agreement, logs, h[:size].detach())

    def confidence(self, batch: Batch) -> Tensor:
        """Agreement of the heads on clean samples, (B,)."""
        return t_similarity(self.votes(self(batch)))

    def logits(self, batch: Batch) -> Tensor:
        return self.head(self(batch))

    def score(self, batch: Batch) -> dict[str, tuple[Tensor, int]]:
        """Accuracy, and the mean agreement of the heads."""
        return {**super().score(batch), "agreement": (self.confidence(batch).sum(), len(batch["y"]))}
