"""Balanced assignment of samples to prototypes."""

from __future__ import annotations

import torch
from torch import Tensor

from ssl_suite.functional.distributed import gather
from ssl_suite.functional.precision import full_precision


@full_precision
@torch.no_grad()
def sinkhorn(scores: Tensor, temperature: float = 0.05, iterations: int = 3) -> Tensor:
    """Soft codes under which the samples of all processes fill every prototype alike (SwAV, arXiv 2006.09882, equation 3).

    Sinkhorn-Knopp on logarithms in float32: exp(score / temperature) overflows from a score of 4.4 at a temperature of 0.05, and
    subtracting the largest score alone lets the rows far below it vanish. The constants K and B of the official code
    cancel.

    Args:
        scores: similarity of each sample to each prototype, (B, K).
        temperature: entropy weight epsilon; small values give hard codes; above 0.
        iterations: rounds of balancing prototypes, then samples; at least 1.

    Returns:
        Codes (B, K) float32 without gradient; rows sum to 1.
    """
    log_codes = scores.float() / temperature
    for _ in range(iterations):
        log_codes = log_codes - gather(log_codes.logsumexp(0, keepdim=True)).logsumexp(0)
        log_codes = log_codes - log_codes.logsumexp(1, keepdim=True)
    return log_codes.exp()


@full_precision
@torch.no_grad()
def masked_sinkhorn(scores: Tensor, counts: Tensor, temperature: float = 0.05, iterations: int = 3) -> Tensor:
    """`sinkhorn` over those samples that count; the others get codes and have no say in the balance.

    Args:
        scores: similarity of each sample to each prototype, (B, K).
        counts: samples that count, (B,) bool; where none does, codes are finite and mean nothing.
        temperature: as for `sinkhorn`.
        iterations: as for `sinkhorn`.

    Returns:
        Codes (B, K) float32 without gradient; rows sum to 1.
    """
    log_codes, silent = scores.float() / temperature, -1e4 * (~counts).float().unsqueeze(1)
    for _ in range(iterations):
        log_codes = log_codes - gather((log_codes + silent).logsumexp(0, keepdim=True)).logsumexp(0)
        log_codes = log_codes - log_codes.logsumexp(1, keepdim=True)
    return log_codes.exp()
