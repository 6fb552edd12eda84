"""Self-learning: the network's own predictions on the test data, sure ones before all, teach its normalisation.

Idea: normalise by the test batch, and move the scales and shifts of the normalisation layers so that each sample's own
pseudo-label becomes more probable. A robust loss lets samples with a doubtful label pull less.

Paper: Rusak, Schneider et al., "If your data distribution shifts, use self-learning", TMLR 2022, arXiv 2104.12928,
section 2: hard and soft pseudo-labels, entropy (as in TENT), and RPL, the generalised cross-entropy with q = 0.8. Labels
are made anew at every step by the network that learns.

Deviations: dropout and stochastic depth stay off and only batch norm uses the batch. Only the normalisation parameters
are given to the optimizer, as the paper describes; the official example hands over all. Batches below ``min_batch`` are
predicted with the stored statistics and not learned from. With several steps the logits are those of the last step's
forward pass. Samples are learned from as they arrive, in one pass.

Batch: ``x`` (B, ...) standardised; ``length`` (B,) where rows are padded.

Known limits: as `tent`. Soft labels made by the same forward pass give no gradient but rounding: choose plain SGD for
``loss: soft``, which is then batch norm by the batch and no more, since Adam would make steps of the rounding.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn

from ssl_suite.adapter import Adapter
from ssl_suite.batch import Tags
from ssl_suite.functional.adaptation import (
    asking_gradient,
    entropy,
    generalized_cross_entropy,
    hard_pseudo_label,
    soft_pseudo_label,
)
from ssl_suite.nn.norm import Selection, Statistics, select_parameters

LOSSES: dict[str, Callable[[Tensor], Tensor]] = {"hard": hard_pseudo_label, "soft": soft_pseudo_label, "entropy": entropy}


class SelfLearning(Adapter):
    """A loss on the own predictions over normalisation parameters; predicts first.

    Args:
        model: standardised samples to logits.
        loss: ``hard`` or ``soft`` pseudo-labels, ``entropy``, or ``rpl``.
        q: exponent of ``rpl``, in (0, 1].
        optimizer: makes an optimizer from parameters; Adam with rate 1e-3, usual for CIFAR, by default.
        steps: updates per batch.
        params: what learns.
        stats: batch-norm statistics.
        min_batch: rows from which batch statistics are trusted.
        autocast: dtype of forward passes.

    Raises:
        ValueError: an unknown loss, a number out of range, or a model in which nothing is selected.
    """

    tags = Tags("Rusak et al., TMLR 2022, arXiv 2104.12928", "adaptation", batch="unlabeled", views=("clean",), target="class")

    def __init__(self, model: nn.Module, *, loss: Literal["hard", "soft", "entropy", "rpl"] = "rpl", q: float = 0.8,
                 optimizer: Callable[..., torch.optim.Optimizer] | None = None, steps: int = 1,
                 params: Selection = "norm_affine", stats: Statistics = "batch", min_batch: int = 16,
                 autocast: Literal["bfloat16"] | None = None) -> None:
        if steps < 1:
            raise ValueError(f"adapter.steps={steps} must be at least 1")
        if not 0.0 < q <= 1.0:
            raise ValueError(f"adapter.q={q} must lie in (0, 1]; the paper's is 0.8")
        if loss not in (*LOSSES, "rpl"):
            raise ValueError(f"adapter.loss={loss!r} is not one of 'hard', 'soft', 'entropy', 'rpl'")
        super().__init__(model, partial(select_parameters, kind=params),
                         optimizer or partial(torch.optim.Adam, lr=1e-3), stats=stats, min_batch=min_batch,
                         autocast=autocast)
        self.steps = steps
        self.loss = partial(generalized_cross_entropy, q=q) if loss == "rpl" else LOSSES[loss]

    def update(self, x: Tensor, length: Tensor | None, index: Tensor) -> tuple[Tensor, Tensor]:
        x = asking_gradient(x, self.model)
        for _ in range(self.steps):
            logits = self(x, length)
            loss = self.loss(logits).mean()
            self.learn(loss)
        return loss, logits
