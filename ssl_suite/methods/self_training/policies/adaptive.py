"""Thresholds of their own for each class: FlexMatch counts what was learnt, FreeMatch averages what is predicted."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_suite.functional.distributed import gather, gather_together, mean_over_processes
from ssl_suite.methods.self_training.policies.base import FixedThreshold, Policy, check_range

UNSEEN, UNSURE = -2, -1
"""What FlexMatch remembers of samples without a label: never drawn, and never sure."""


class FlexMatch(FixedThreshold):
    """FlexMatch: the fewer samples a class has won with confidence, the lower its threshold.

    A sample keeps the last class it was guessed to be at ``threshold`` or above. With n_c samples of class c, the
    threshold of c is ``threshold`` * b / (2 - b) with b = n_c / max(n_1, .., n_K, samples without a class): the convex
    mapping, and the warm-up that counts samples without a class. As in the official code a step is judged by the counts
    before it.

    Deviation: samples that were never drawn are not counted among those without a class. After the first pass through
    the data that is the same; and samples held out for validation, which are never drawn, would lower the thresholds
    for ever.

    Args:
        num_classes: number of classes K.
        num_samples: size of the training set; every ``index`` lies below it.
        threshold: least probability of a class learnt best, in [0, 1].

    Raises:
        ValueError: the threshold lies outside [0, 1], the size of the data set is unknown, or a step brings no
            ``index``, or one that is too large; on a GPU the latter ends in an error of the device.
    """

    paper = "Zhang et al., NeurIPS 2021, arXiv 2110.08263"
    learnt: Tensor

    def __init__(self, num_classes: int, num_samples: int, threshold: float = 0.95) -> None:
        super().__init__(threshold)
        if num_samples < 1:
            raise ValueError(f"policy.num_samples={num_samples}: FlexMatch remembers every sample and must know the size of "
                             "the training set; set policy.num_samples above the largest index")
        self.num_classes = num_classes
        self.register_buffer("learnt", torch.full((num_samples + 1,), UNSEEN))  # the last is a place for what is not kept

    @torch.no_grad()
    def forward(self, probs: Tensor, index: Tensor | None = None, labeled_probs: Tensor | None = None,
                labels: Tensor | None = None) -> tuple[Tensor, Tensor]:
        if index is None:
            raise ValueError("FlexMatch remembers samples: give the policy their index (batch['unlabeled']['index'])")
        confidence, target = probs.max(dim=1)
        level = self.class_levels()[target]
        weight = (confidence >= self.threshold * level / (2.0 - level)).to(probs.dtype)
        self.remember(*gather(torch.stack([index, target, (confidence >= self.threshold).long()], dim=1)).unbind(1))
        return target, weight

    def class_levels(self) -> Tensor:
        """How well each class is learnt, as a share of the largest count, (K,)."""
        learnt = self.learnt[:-1] - UNSEEN
        counts = learnt.new_zeros(self.num_classes - UNSEEN).scatter_add_(0, learnt, torch.ones_like(learnt))[1:]
        return counts[1:] / counts.max().clamp(min=1)

    def remember(self, index: Tensor, target: Tensor, sure: Tensor) -> None:
        """Note the classes of sure samples; a sample drawn twice is sure if one of its views is."""
        seen = self.learnt[:-1]
        try:
            seen[index] = seen[index].clamp(min=UNSURE)
        except IndexError as error:
            raise ValueError(f"FlexMatch remembers {len(seen)} samples and a step brings one beyond ({error}); set "
                             "policy.num_samples above the largest index") from error
        self.learnt[torch.where(sure.bool(), index, len(self.learnt) - 1)] = target


class FreeMatch(Policy):
    """FreeMatch: the threshold is the running mean of the confidence, lowered for classes that are predicted less.

    With running means of the largest probability (tau), of the probabilities (p, (K,)) and of the guessed classes (h,
    (K,)), all moved by this step before they are used and starting from 1/K, a guess c is believed from
    tau * p_c / max(p) on. The fairness term is sum_c A_c log B_c, with A ~ p / h, and B ~ mean probability / share of the
    guesses on the kept strong views, both made to sum to 1. As in the official code it is negative by construction, is added
    with a plus and left out where nothing is kept; a share of 0 makes the class's A or B 0.

    Args:
        num_classes: number of classes K.
        momentum: of the running means, in [0, 1].
        fairness_weight: weight of the fairness term; 0.001 is the USB benchmark's for CIFAR, 0.01 its code's default.

    Raises:
        ValueError: the momentum lies outside [0, 1].
    """

    paper = "Wang et al., ICLR 2023, arXiv 2205.07246"
    confidence: Tensor
    probs: Tensor
    guesses: Tensor

    def __init__(self, num_classes: int, momentum: float = 0.999, fairness_weight: float = 0.001) -> None:
        super().__init__()
        check_range("momentum", momentum, 0.0, 1.0)
        self.num_classes, self.momentum, self.fairness_weight = num_classes, momentum, fairness_weight
        self.register_buffer("confidence", torch.tensor(1.0 / num_classes))
        self.register_buffer("probs", torch.full((num_classes,), 1.0 / num_classes))
        self.register_buffer("guesses", torch.full((num_classes,), 1.0 / num_classes))

    @torch.no_grad()
    def forward(self, probs: Tensor, index: Tensor | None = None, labeled_probs: Tensor | None = None,
                labels: Tensor | None = None) -> tuple[Tensor, Tensor]:
        confidence, target = probs.max(dim=1)
        shares = F.one_hot(target, self.num_classes).to(probs.dtype).mean(0)
        means = mean_over_processes(torch.cat([confidence.mean().view(1), probs.mean(0), shares])).to(self.probs.dtype)
        for old, new in zip((self.confidence.view(1), self.probs, self.guesses), means.split([1, *probs.shape[1:] * 2]),
                            strict=True):
            old.lerp_(new, 1.0 - self.momentum)
        threshold = self.confidence * self.probs / self.probs.max()
        return target, (confidence >= threshold[target]).to(probs.dtype)

    def penalty(self, logits: Tensor, weight: Tensor) -> Tensor:
        probs, kept = gather_together(logits.float().softmax(1), weight.float().unsqueeze(1))
        count = kept.sum().clamp(min=1.0)
        shares = (F.one_hot(probs.argmax(1), self.num_classes) * kept).sum(0) / count
        mean = (probs * kept).sum(0) / count
        fairness = (even(self.probs, self.guesses) * (even(mean, shares) + 1e-12).log()).sum()
        return self.fairness_weight * torch.where(kept.sum() > 0, fairness, 0.0)


def even(probs: Tensor, shares: Tensor) -> Tensor:
    """Probabilities divided by the shares of the guesses and made to sum to 1, (K,); 0 for classes never guessed."""
    ratio = torch.where(shares > 0, probs / shares.clamp(min=1e-12), 0.0)
    return ratio / ratio.sum().clamp(min=1e-12)
