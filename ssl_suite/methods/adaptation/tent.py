"""TENT: at test time, make the network surer of what it predicts by moving nothing but its normalisation.

Idea: under a shift, the features' statistics are off and predictions are unsure. Normalise by the test batch, and move
the scales and shifts of the normalisation layers so that the entropy of the predictions falls. No labels, no source
data.

Paper: Wang et al., "Tent: Fully Test-Time Adaptation by Entropy Minimization", ICLR 2021, arXiv 2006.10726.
The same arithmetic as `self_learning` with ``loss: entropy``.

Deviations: the official code puts the whole network in training mode; here dropout and stochastic depth stay off and
only batch norm uses the batch. Batches below ``min_batch`` are predicted with the stored statistics and not learned
from.
With several steps the logits are those of the last step's forward pass, as in the official code.

Batch: ``x`` (B, ...) standardised; ``length`` (B,) where rows are padded.

Known limits: batch statistics fail on streams sorted by class and on small batches; a large rate or a long run
collapses to few classes, most of all on networks without batch norm. `reset` between shifts where they are known.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import nn

from ssl_suite.batch import Tags
from ssl_suite.methods.adaptation.self_learning import SelfLearning
from ssl_suite.nn.norm import Selection, Statistics


class Tent(SelfLearning):
    """Entropy minimisation over normalisation parameters; predicts first.

    Args:
        model: standardised samples to logits.
        optimizer: makes an optimizer from parameters; Adam with rate 1e-3, the paper's for CIFAR, by default.
        steps: updates per batch.
        params: what learns.
        stats: batch-norm statistics.
        min_batch: rows from which batch statistics are trusted.
        autocast: dtype of forward passes.

    Raises:
        ValueError: no steps, or a model in which nothing is selected.
    """

    tags = Tags("Wang et al., ICLR 2021, arXiv 2006.10726", "adaptation", batch="unlabeled", views=("clean",), target="class")

    def __init__(self, model: nn.Module, *, optimizer: Callable[..., torch.optim.Optimizer] | None = None,
                 steps: int = 1, params: Selection = "norm_affine", stats: Statistics = "batch", min_batch: int = 16,
                 autocast: Literal["bfloat16"] | None = None) -> None:
        super().__init__(model, loss="entropy", optimizer=optimizer, steps=steps, params=params, stats=stats,
                         min_batch=min_batch, autocast=autocast)
