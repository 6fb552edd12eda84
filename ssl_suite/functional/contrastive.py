"""Telling one's own key from others'."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_suite.functional.distributed import gather, rank
from ssl_suite.functional.precision import full_precision


@full_precision
def info_nce(queries: Tensor, keys: Tensor, temperature: float) -> Tensor:
    """Cross-entropy of each query's own key among the keys of all processes, by cosine similarity (InfoNCE), in float32.

    Args:
        queries: (B, D); row i belongs to key i.
        keys: (B, D); detach what is not to learn.
        temperature: above 0.

    Returns:
        Scalar: the mean over this process's queries.
    """
    logits = F.normalize(queries.float(), dim=1) @ gather(F.normalize(keys.float(), dim=1)).T / temperature
    return F.cross_entropy(logits, torch.arange(len(queries), device=queries.device) + rank() * len(queries))
