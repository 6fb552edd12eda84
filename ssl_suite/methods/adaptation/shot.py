"""SHOT, online: keep the classifier, and move the features until predictions are sure one by one and diverse together.

Idea: the classifier is the source's hypothesis and stays. The feature extractor learns so that each prediction is sure
and all classes are predicted (information maximisation), helped by the labels of the surest samples.

Paper: Liang, Hu and Feng, "Do We Really Need to Access the Source Data? Source Hypothesis Transfer for Unsupervised Domain
Adaptation", ICML 2020, arXiv 2002.08546, in the online form of the test-time benchmarks: mean entropy, minus the entropy of
the mean prediction, plus 0.3 times the cross-entropy with the own label where the confidence is above 0.9.

Deviations: the paper trains for epochs on a stored target set with labels from class centroids; a stream has no epochs,
so the own sure predictions stand for them. The rate is ours. Dropout stays off and only batch norm uses the batch; batches
below ``min_batch`` are not learned from.

Batch: ``x`` (B, ...) standardised; ``length`` (B,) where rows are padded.

Known limits: it asks every batch for all classes, which is wrong on streams sorted by class and in batches smaller than
the number of classes. The whole extractor learns, so it forgets and collapses sooner than `tent`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn

from ssl_suite.adapter import Adapter
from ssl_suite.batch import Tags
from ssl_suite.functional.adaptation import asking_gradient, entropy, hard_pseudo_label, mean_of_kept
from ssl_suite.nn.features import linear_head
from ssl_suite.nn.norm import Statistics


def select_extractor(model: nn.Module) -> list[nn.Parameter]:
    """All parameters but those of the linear head.

    Raises:
        ValueError: nothing is left, or there is no linear head.
    """
    head = {id(p) for p in linear_head(model).parameters()}
    chosen = [p for p in model.parameters() if id(p) not in head]
    if not chosen:
        raise ValueError(f"{type(model).__name__} has no parameters below its linear classifier; adapt with model=t3a")
    return chosen


class Shot(Adapter):
    """Information maximisation and sure own labels over the feature extractor; predicts first.

    Args:
        model: standardised samples to logits, by a linear layer.
        threshold: confidence above which a sample's own label counts.
        label_weight: weight of the cross-entropy with own labels.
        optimizer: makes an optimizer from parameters; SGD with rate 1e-3 and momentum 0.9 by default.
        stats: batch-norm statistics.
        min_batch: rows from which batch statistics are trusted.
        autocast: dtype of forward passes.

    Raises:
        ValueError: a number out of range, or a model without linear classifier.
    """

    tags = Tags("Liang et al., ICML 2020, arXiv 2002.08546", "adaptation", batch="unlabeled", views=("clean",),
                target="class")
    assumes = "shuffled"

    def __init__(self, model: nn.Module, *, threshold: float = 0.9, label_weight: float = 0.3,
                 optimizer: Callable[..., torch.optim.Optimizer] | None = None, stats: Statistics = "batch",
                 min_batch: int = 16, autocast: Literal["bfloat16"] | None = None) -> None:
        if not (0.0 <= threshold <= 1.0 and label_weight >= 0.0):
            raise ValueError(f"adapter.threshold={threshold} must lie in [0, 1] and adapter.label_weight={label_weight} be "
                             "at least 0; 0.9 and 0.3 are usual")
        super().__init__(model, select_extractor, optimizer or partial(torch.optim.SGD, lr=1e-3, momentum=0.9),
                         stats=stats, min_batch=min_batch, autocast=autocast)
        self.threshold, self.label_weight = threshold, label_weight

    def update(self, x: Tensor, length: Tensor | None, index: Tensor) -> tuple[Tensor, Tensor]:
        logits = self(asking_gradient(x, self.model), length)
        probs = logits.softmax(1)
        mean = probs.mean(0)
        spread = -(mean * mean.clamp(min=1e-12).log()).sum()
        sure = probs.detach().amax(1) > self.threshold
        labels = mean_of_kept(hard_pseudo_label(logits), sure)
        loss = self.label_weight * labels + entropy(logits).mean() - spread
        self.learn(loss)
        return loss, logits
