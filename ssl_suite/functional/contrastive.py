"""Telling one's own from others."""

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


@full_precision
def supcon_loss(z: Tensor, y: Tensor, temperature: float) -> Tensor:
    """Mean over anchors of -mean over positives of log softmax among all others, in float32.

    Equation 2 of SupCon (arXiv 2004.11362); with a class for each sample it is the loss of SimCLR.

    Args:
        z: embeddings, (A, D), several views of a sample as rows of their own.
        y: class of each row, (A,); every class of this process stands twice at least.
        temperature: above 0.

    Returns:
        Scalar: the mean over this process's anchors, against the rows of all processes.
    """
    z = F.normalize(z.float(), dim=1)
    own = torch.arange(len(z), device=z.device)[:, None] + rank() * len(z)
    logits = (z @ gather(z).T / temperature).scatter(1, own, -torch.inf)
    positive = (y[:, None] == gather(y)).scatter(1, own, False)
    log_prob = F.log_softmax(logits, dim=1).masked_fill(~positive, 0.0)
    return -(log_prob.sum(1) / positive.sum(1)).mean()
