"""ROID: weighted soft likelihood ratios, consistency under views, and a constant pull back to the source.

Idea: entropy has no gradient where a network is sure; the likelihood ratio keeps one. Weight samples by how sure and how
different from recent predictions they are, ask for the same prediction on an augmented view, average the weights with the
source's after every step so that nothing is forgotten, and correct outputs by the batch's class frequencies.

Paper: Marsden, Doebler and Yang, "Universal Test-time Adaptation through Weight Ensembling, Diversity Weighting, and Prior
Correction", WACV 2024, arXiv 2306.00650. Temperature 1/3, momentum of the mean prediction 0.9, probabilities clipped at
0.99, share of the adapted weights 0.99.

Deviations: views are what the data call ``view``. Rows with weight 0 are computed too, so that nothing waits for the
device, and batch norm sees their views. As in the official code the prior correction multiplies the logits. Dropout stays
off; batches below ``min_batch`` are not learned from. A collapse guard may find that neighbours in the stream are not alike; the
prior is left alone then, since a weak network's favourite classes would be favoured still more.

Batch: ``x`` (B, ...) standardised; ``length`` (B,) where rows are padded; ``index`` (B,) seeds the views.

Known limits: the prior is that of the batch a sample comes in, so a prediction depends on its batch. With batch norm
the failures of batch statistics remain where labels are correlated.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_suite.adapter import Adapter
from ssl_suite.batch import Tags
from ssl_suite.functional.adaptation import asking_gradient, entropy, soft_cross_entropy
from ssl_suite.functional.random import Draw, sample_keys
from ssl_suite.nn.copies import TensorCopies
from ssl_suite.nn.features import linear_head
from ssl_suite.nn.norm import Selection, Statistics, select_parameters
from ssl_suite.views import Views

CLIP, EPS = 0.99, 1e-5


def soft_likelihood_ratio(logits: Tensor) -> Tensor:
    """-sum p ln(p / (1 - p)) of logits (B, K), with p clipped from above, (B,)."""
    p = logits.softmax(1).clamp(max=CLIP)
    return -(p * (p / (1.0 - p) + EPS).log()).sum(1)


def unit_range(values: Tensor) -> Tensor:
    """Values (B,) moved and stretched to [0, 1]; all 0 where they are the same."""
    low, high = values.aminmax()
    return (values - low) / (high - low).clamp(min=1e-12)


def prior_corrected(logits: Tensor) -> Tensor:
    """Logits (B, K) times the smoothed class frequencies of the batch."""
    b, k = logits.shape
    prior = logits.softmax(1).mean(0)
    smooth = max(1.0 / b, 1.0 / k) / prior.max()
    return logits * (prior + smooth) / (1.0 + smooth * k)


class Roid(Adapter):
    """Soft likelihood ratio and consistency over normalisation parameters; predicts first.

    Args:
        model: standardised samples to logits, by a linear layer.
        views: the data's views; ``view`` is drawn for every sample. None compares with the sample itself.
        view: kind of view.
        temperature: of the weights.
        momentum: share of the old mean prediction that stays.
        momentum_source: share of the adapted weights at every averaging with the source's.
        seed: seed of the views, together with each sample's index.
        optimizer: makes an optimizer from parameters; Adam with rate 1e-3 by default.
        params: what learns.
        stats: batch-norm statistics.
        min_batch: rows from which batch statistics are trusted.
        autocast: dtype of forward passes.

    Raises:
        ValueError: a number out of range, or a model in which nothing is selected.
    """

    assumes = "told"
    tags = Tags("Marsden et al., WACV 2024, arXiv 2306.00650", "adaptation", batch="unlabeled", views=("weak",),
                target="class")
    mean_probs: Tensor

    def __init__(self, model: nn.Module, *, views: Views | None = None, view: str = "weak", temperature: float = 1 / 3,
                 momentum: float = 0.9, momentum_source: float = 0.99, seed: int = 0,
                 optimizer: Callable[..., torch.optim.Optimizer] | None = None, params: Selection = "norm_affine",
                 stats: Statistics = "batch", min_batch: int = 16, autocast: Literal["bfloat16"] | None = None) -> None:
        if not (temperature > 0.0 and 0.0 <= momentum < 1.0 and 0.0 <= momentum_source <= 1.0):
            raise ValueError(f"adapter.temperature={temperature} must be positive, adapter.momentum={momentum} in [0, 1) "
                             f"and adapter.momentum_source={momentum_source} in [0, 1]; the paper's are 1/3, 0.9, 0.99")
        super().__init__(model, partial(select_parameters, kind=params),
                         optimizer or partial(torch.optim.Adam, lr=1e-3), stats=stats, min_batch=min_batch,
                         autocast=autocast)
        self.views, self.view = copy.deepcopy(views) or Views(), view if views is not None else "clean"
        self.temperature, self.momentum, self.momentum_source = temperature, momentum, momentum_source
        self.seed, weight = seed, linear_head(self.model).weight
        self.register_buffer("mean_probs", torch.full((len(weight),), 1.0 / len(weight), device=weight.device))
        self.register_buffer("alike", torch.tensor(True, device=weight.device))
        self.source = TensorCopies(self.learning)

    def predict(self, x: Tensor, length: Tensor | None = None) -> Tensor:
        return self.corrected(super().predict(x, length))

    def corrected(self, logits: Tensor) -> Tensor:
        """Logits (B, K), corrected by the batch's prior unless a guard found that neighbours are not alike."""
        return torch.where(self.alike, prior_corrected(logits), logits)

    def update(self, x: Tensor, length: Tensor | None, index: Tensor) -> tuple[Tensor, Tensor]:
        draw = Draw(sample_keys(self.seed, torch.zeros_like(index), index))
        view = self.views.redraw(x, self.view, draw, length)
        logits = self(asking_gradient(x, self.model), length)
        weight = self.weights(logits.detach())
        other = self(asking_gradient(view, self.model), length)
        consistency = 0.5 * (soft_cross_entropy(other, logits.softmax(1)) + soft_cross_entropy(logits, other.softmax(1)))
        loss = (weight * (soft_likelihood_ratio(logits) + consistency)).mean()
        self.used = (weight > 0).sum()
        self.learn(loss)
        with torch.no_grad():
            for p, source in zip(self.learning, self.source.tensors, strict=True):
                p.lerp_(source, 1.0 - self.momentum_source)
        return loss, self.corrected(logits)

    def weights(self, logits: Tensor) -> Tensor:
        """Weight (B,) of each row: sure and new ones more, those less new than the average none; moves the mean."""
        probs = logits.softmax(1)
        diversity = unit_range(1.0 - F.cosine_similarity(self.mean_probs[None], probs))
        certainty = unit_range(-entropy(logits))
        self.mean_probs.lerp_(probs.mean(0), 1.0 - self.momentum)
        return (diversity * certainty / self.temperature).exp() * (diversity >= diversity.mean())
