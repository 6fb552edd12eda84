"""SimMatch: strong views must resemble the labelled samples as the teacher's weak views do, class by class and one by one.

Idea: likeness to each labelled sample says more than likeness to a class. What a slowly moving teacher sees in the weak
view, over classes and over the labelled samples in a bank, corrects itself both ways and is the target of the strong view.

Paper: Zheng et al., "SimMatch: Semi-supervised Learning with Similarity Matching", CVPR 2022, arXiv 2203.06915, equations
5 to 12, in the form of the official ImageNet code: a moving average labels, the bank holds its embeddings of the labelled
samples, guesses are aligned to the uniform distribution, labels are soft and believed by a threshold.

Deviations: the bank takes the labelled rows of a step before it is asked and its empty places are left out; the official
one starts from random vectors and so waits for an epoch. A sample drawn twice in a step leaves the mean of both. The loss
on likeness is a KL divergence, of the same gradient as the cross-entropy: that one would grow with the samples in the bank.
Guesses are aligned by a running mean that the step moves first, in place of the mean over 256 steps (see `Alignment`). The
moving average is warmed up, normalises by its own batch and copies the running statistics of the student, as in
`MeanTeacher`.

Batch: ``labeled`` with ``x`` (B, ...), ``y`` (B,), ``index``; ``unlabeled`` with ``x`` (M, ...), ``index``; both with
``epoch`` and ``length`` where present. Labelled and unlabelled rows of different T are padded to the longer.

Known limits: the bank costs (M, ``bank_size``) numbers a step, so do not make it much larger than there are labels. With
uniform alignment unbalanced classes are evened out. Over several processes the bank holds the labelled samples of all.
"""

from __future__ import annotations

from typing import Unpack

import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_suite.batch import Backbone, Batch, StepOutput, Tags
from ssl_suite.functional.ema import make_teacher
from ssl_suite.functional.pseudo_labels import concat_rows, consistency_loss
from ssl_suite.method import Training
from ssl_suite.methods.self_training.fixmatch import FixMatch
from ssl_suite.methods.self_training.policies import Alignment, FixedThreshold
from ssl_suite.nn.heads import mlp
from ssl_suite.nn.memory import LabeledBank
from ssl_suite.views import Views


def match(probs: Tensor, near: Tensor, owners: Tensor, smoothing: float) -> tuple[Tensor, Tensor]:
    """Likeness to classes and to labelled samples, each corrected by the other (equations 8 to 11).

    Args:
        probs: probabilities of the classes, (M, K).
        near: likeness to the samples of the bank, rows sum to 1, (M, N).
        owners: classes of the samples of the bank, (N,); any where the likeness is 0.
        smoothing: share of the samples in the classes, in [0, 1].

    Returns:
        Probabilities of the classes, (M, K), and likeness to the samples times the probability of their class, made to sum
        to 1, (M, N).
    """
    by_class = (near @ F.one_hot(owners, probs.shape[1]).to(near.dtype)).to(probs.dtype)
    by_sample = near * probs[:, owners]
    return torch.lerp(probs, by_class, smoothing), by_sample / by_sample.sum(1, keepdim=True).clamp_min(1e-12)


class SimMatch(FixMatch):
    """FixMatch with a moving average that labels, plus consistency of the likeness to every labelled sample.

    Args:
        backbone: any backbone.
        views: kind ``weak`` for all samples, ``strong`` for the unlabelled ones.
        num_classes: number of classes.
        threshold: least probability of a pseudo-label that counts, in [0, 1].
        lambda_u: weight of the loss on pseudo-labels.
        lambda_in: weight of the loss on the likeness to labelled samples.
        smoothing: share of the labelled samples in a pseudo-label, in [0, 1].
        temperature: of the likeness of embeddings; above 0.
        projection_dim: width of the embedding.
        bank_size: labelled samples there is room for; those seen later are left out.
        align_momentum: momentum of the running mean that guesses are aligned by, in [0, 1].
        ema_decay: momentum of the teacher.
        training: optimizer and schedule; see `Method`.

    Raises:
        ValueError: an argument lies outside of its range.
    """

    tags = Tags("Zheng et al., CVPR 2022, arXiv 2203.06915", "self_training", batch="semi", views=("weak", "strong"),
                across_batch=True, target="class")
    teachers = {**FixMatch.teachers, "ema_projector": "projector"}

    def __init__(self, backbone: Backbone, views: Views, *, num_classes: int, threshold: float = 0.95, lambda_u: float = 1.0,
                 lambda_in: float = 1.0, smoothing: float = 0.1, temperature: float = 0.1, projection_dim: int = 128,
                 bank_size: int = 4096, align_momentum: float = 0.996, ema_decay: float = 0.999,
                 **training: Unpack[Training]) -> None:
        super().__init__(backbone, views, num_classes=num_classes, policy=FixedThreshold(threshold), lambda_u=lambda_u,
                         ema_decay=ema_decay, **training)
        if not 0.0 <= smoothing <= 1.0:
            raise ValueError(f"model.smoothing={smoothing} is a share and must lie in [0, 1]")
        if temperature <= 0.0:
            raise ValueError(f"model.temperature must be above 0, got {temperature}")
        self.projector = mlp(backbone.num_features, backbone.num_features, projection_dim, norm=False)
        self.ema_projector = make_teacher(self.projector)
        self.bank = LabeledBank(bank_size, projection_dim)
        self.align = Alignment(num_classes, align_momentum)
        self.lambda_in, self.smoothing, self.temperature = lambda_in, smoothing, temperature

    @torch.no_grad()
    def teach(self, rows: Tensor, length: Tensor | None, labeled: Batch) -> tuple[Tensor, Tensor]:
        """Targets of the unlabelled rows over classes (M, K) and bank (M, N), by weak views, the labelled ones (B) first."""
        size = len(labeled["y"])
        h = self.ema_backbone(rows, length)
        z_labeled, z = F.normalize(self.ema_projector(h).float(), dim=1).tensor_split([size])
        probs = self.align(self.ema_head(h[size:]).float().softmax(1))
        self.bank.update(labeled["index"], z_labeled, labeled["y"])
        near = self.bank.similarities(z, self.temperature).softmax(1)
        return match(probs, near, self.bank.labels.clamp(min=0), self.smoothing)

    def step(self, batch: Batch) -> StepOutput:
        labeled, unlabeled = batch["labeled"], batch["unlabeled"]
        lengths = [labeled.get("length"), unlabeled.get("length")]
        (given,), (weak, strong) = self.views(labeled, "weak"), self.views(unlabeled, "weak", "strong")
        h = self.backbone(*concat_rows([given, strong], lengths))
        logits, logits_strong = self.head(h).tensor_split([len(given)])
        z = F.normalize(self.projector(h[len(given) :]).float(), dim=1)

        target, relation = self.teach(*concat_rows([given, weak], lengths), labeled)
        weight = self.policy(target)[1]
        loss_sup, loss_unsup = F.cross_entropy(logits, labeled["y"]), consistency_loss(logits_strong, target, weight)
        loss_in = F.kl_div(self.bank.similarities(z, self.temperature).log_softmax(1), relation, reduction="batchmean")
        logs = {"loss_sup": loss_sup.detach(), "loss_unsup": loss_unsup.detach(), "loss_in": loss_in.detach(),
                "mask_ratio": weight.mean()}
        return StepOutput(loss_sup + self.lambda_u * loss_unsup + self.lambda_in * loss_in, logs, h[: len(given)].detach())
