"""FlexPredict: I-JEPA that asks for what is near a position, since exactly where things are is seldom certain.

Idea: what is behind a mask can often be told, its exact place cannot. Each position the predictor is asked about gets Gaussian
noise whose covariance is learned. To keep the model from learning to have none, the noise passes the same matrix as the context
tokens: without noise, no context.

Paper: Bar et al., "Stochastic positional embeddings improve masked image modeling", ICML 2024, arXiv 2308.00566 (first named
FlexPredict), section 3.

Deviations: as for `IJEPA`. The noise passes the matrix without its bias and the mask token stays, where the official code has
the one bias for both. Noise is drawn per sample, block and token from (seed, epoch, index), like all that is random in a view.

Batch: ``x`` (B, ...) and ``index`` (B,), with ``epoch`` and ``length`` (B,) where present.

Known limits: those of `IJEPA`; the authors report no gain for masked autoencoders, and at the size of the digits only the
mechanics can be seen.
"""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor

from ssl_suite.batch import Backbone, Batch, Tags
from ssl_suite.methods.pretraining.ijepa import IJEPA
from ssl_suite.views import Views

NOISE_STREAM = 101


class FlexPredict(IJEPA):
    """I-JEPA with stochastic positions.

    Args:
        backbone: a patch transformer.
        views: the kind named by ``view`` is used.
        sigma: standard deviation of the noise before the matrix, 0 or more; 0 is I-JEPA.
        options: as for `IJEPA`.

    Raises:
        ValueError: sigma is negative.
    """

    tags = Tags("Bar et al., ICML 2024, arXiv 2308.00566", "pretraining", backbone="tokens", views=("weak",))

    def __init__(self, backbone: Backbone, views: Views, *, sigma: float = 0.25, **options: Any) -> None:
        super().__init__(backbone, views, **options)
        if sigma < 0.0:
            raise ValueError(f"sigma is a standard deviation and must be 0 or more, got {sigma}")
        self.sigma = sigma

    def queries(self, batch: Batch, positions: Tensor) -> Tensor:
        """Mask token and position, moved by A n with n ~ N(0, sigma^2 I) in training (equation 4)."""
        queries = super().queries(batch, positions)
        if not self.training:
            return queries
        noise = self.views.draw(batch, NOISE_STREAM).normal(*positions.shape[1:3], self.predictor.embed.in_features)
        return queries + F.linear(self.sigma * noise, self.predictor.embed.weight)
