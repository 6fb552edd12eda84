"""Telling one's own from others."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_suite.functional.distributed import gather, gather_together, rank
from ssl_suite.functional.precision import full_precision


@full_precision
def swapped_info_nce(q0: Tensor, q1: Tensor, k0: Tensor, k1: Tensor, temperature: float) -> Tensor:
    """Cross-entropy of each query's own key among the keys of all processes, by cosine similarity (InfoNCE), in float32.

    Queries of one view look for keys of the other, and the reverse; the two losses are added. The processes talk once.

    Args:
        q0: queries of one view, (B, D).
        q1: of the other; row i of all four belongs to sample i.
        k0: keys of one view, (B, D); detach what is not to learn.
        k1: of the other.
        temperature: above 0.

    Returns:
        Scalar: for each direction the mean over this process's queries.
    """
    own = torch.arange(len(q0), device=q0.device) + rank() * len(q0)
    keys = gather_together(*(F.normalize(k.float(), dim=1) for k in (k1, k0)))
    logits = [F.normalize(q.float(), dim=1) @ k.T / temperature for q, k in zip((q0, q1), keys, strict=True)]
    return F.cross_entropy(logits[0], own) + F.cross_entropy(logits[1], own)


@full_precision
def nt_xent(z0: Tensor, z1: Tensor, temperature: float) -> Tensor:
    """Cross-entropy of each embedding's other view among all further embeddings of all processes (SimCLR, equation 1), in float32.

    As lightly's ``NTXentLoss``, but nothing is picked by a mask, which would wait for the device, and the processes talk once.

    Args:
        z0: embeddings of one view, (B, D).
        z1: of the other, (B, D); row i belongs to the sample of row i.
        temperature: of the softmax over cosine similarities.

    Returns:
        Scalar: the mean over this process's 2B embeddings.

    Raises:
        ValueError: the temperature is not above 0.
    """
    if temperature <= 0.0:
        raise ValueError(f"temperature must be above 0, got {temperature}")
    z = F.normalize(torch.cat([z0, z1]).float(), dim=1)
    own = torch.arange(len(z), device=z.device)
    first = rank() * len(z)
    logits = (z @ gather(z).T / temperature).scatter(1, own[:, None] + first, -torch.inf)
    return F.cross_entropy(logits, own.roll(len(z0)) + first)


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
