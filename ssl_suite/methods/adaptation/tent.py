"""TENT: at test time, make the network surer of what it predicts by moving nothing but its normalisation.

Idea: under a shift, the features' statistics are off and predictions are unsure. Normalise by the test batch, and move
the scales and shifts of the normalisation layers so that the entropy of the predictions falls. No labels, no source
data.

Paper: Wang et al., "Tent: Fully Test-Time Adaptation by Entropy Minimization", ICLR 2021, arXiv 2006.10726.

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
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn

from ssl_suite.adapter import Adapter
from ssl_suite.batch import Tags
from ssl_suite.functional.adaptation import entropy
from ssl_suite.nn.norm import Selection, Statistics, select_parameters


class Tent(Adapter):
    """Entropy minimisation over normalisation parameters; predicts first.

    Args:
        model: standardised samples to logits.
        optimizer: makes an optimizer from parameters; Adam with rate 1e-3, the paper's for CIFAR, by default.
        steps: updates per batch.
        params: what learns.
        stats: batch-norm statistics.
        min_batch: rows from which batch statistics are trusted.
        autocast: dtype of forward passes.
    """

    tags = Tags("Wang et al., ICLR 2021, arXiv 2006.10726", "adaptation", batch="unlabeled", views=("clean",), target="class")

    def __init__(self, model: nn.Module, *, optimizer: Callable[..., torch.optim.Optimizer] | None = None,
                 steps: int = 1, params: Selection = "norm_affine", stats: Statistics = "batch", min_batch: int = 16,
                 autocast: Literal["bfloat16"] | None = None) -> None:
        if steps < 1:
            raise ValueError(f"steps={steps} must be at least 1")
        super().__init__(model, partial(select_parameters, kind=params),
                         optimizer or partial(torch.optim.Adam, lr=1e-3), stats=stats, min_batch=min_batch,
                         autocast=autocast)
        self.steps = steps

    def update(self, x: Tensor, length: Tensor | None, index: Tensor) -> tuple[Tensor, Tensor]:
        # torch 2.12 on CPU crashes in GroupNorm's backward on channels-last maps whose own gradient nobody asks for,
        # as below the first layer that learns; asking for the gradient of the samples costs one convolution.
        x = x.detach().requires_grad_()
        for _ in range(self.steps):
            logits = self(x, length)
            loss = entropy(logits).mean()
            self.learn(loss)
        return loss, logits
