"""Similarity of embeddings to prototypes."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from ssl_suite.functional.precision import full_precision


@full_precision
def similarity(z: Tensor, prototypes: Tensor) -> Tensor:
    """Cosine of each embedding (..., D) with each prototype (K, D), (..., K) float32."""
    return F.normalize(z.float(), dim=-1) @ F.normalize(prototypes.float(), dim=-1).T
