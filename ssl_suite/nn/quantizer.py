"""Product quantisation with Gumbel softmax (wav2vec 2.0, arXiv 2006.11477, section 2, "Quantization module")."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn


class Quantized(NamedTuple):
    """What a quantiser makes of vectors (..., C).

    Attributes:
        vectors: concatenated codebook entries, (..., dim).
        codes: entry chosen in each group, (..., G) int64.
        probs: softmax of the logits without noise and temperature, (..., G, V).
    """

    vectors: Tensor
    codes: Tensor
    probs: Tensor


def perplexity(usage: Tensor) -> Tensor:
    """Entries in effective use, summed over groups: sum_g exp(H(usage_g)).

    Args:
        usage: share of each entry, (G, V), rows summing to 1.

    Returns:
        Scalar in [G, G * V].
    """
    return torch.special.entr(usage).sum(dim=-1).exp().sum()


def gumbel(uniform: Tensor) -> Tensor:
    """Standard Gumbel noise from uniform numbers in [0, 1)."""
    return -(-(uniform.clamp_min(1e-10).log())).log()


class GumbelQuantizer(nn.Module):
    """Chooses one entry of each of G codebooks, with a straight-through gradient.

    Everything runs in float32, whatever autocast says: the noise is larger than what bfloat16 tells apart.

    Args:
        in_dim: width C of the vectors.
        groups: codebooks G.
        entries: entries V of each codebook.
        dim: width of the concatenated entries; divisible by ``groups``.

    Raises:
        ValueError: ``dim`` is not divisible by ``groups``.
    """

    def __init__(self, in_dim: int, groups: int = 2, entries: int = 320, dim: int = 256) -> None:
        super().__init__()
        if dim % groups:
            raise ValueError(f"codebook_dim={dim} must be divisible by groups={groups}")
        self.groups, self.entries = groups, entries
        self.logits = nn.Linear(in_dim, groups * entries)
        nn.init.normal_(self.logits.weight)
        nn.init.zeros_(self.logits.bias)
        self.codebook = nn.Parameter(torch.rand(groups, entries, dim // groups))

    def forward(self, x: Tensor, tau: float = 1.0, noise: Tensor | None = None) -> Quantized:
        """Quantise vectors.

        Args:
            x: (..., C).
            tau: temperature of the softmax that carries the gradient; above 0.
            noise: standard Gumbel noise (..., G, V); None takes the largest logit, without gradient to the logits.
        """
        with torch.autocast(x.device.type, enabled=False):
            logits = self.logits(x.float()).unflatten(-1, (self.groups, self.entries))
            scores = logits if noise is None else (logits + noise) / tau
            codes = scores.argmax(dim=-1)
            choice = nn.functional.one_hot(codes, self.entries).to(scores.dtype)
            if noise is not None:
                soft = scores.softmax(dim=-1)
                choice = choice + (soft - soft.detach())
            vectors = torch.einsum("...gv,gvd->...gd", choice, self.codebook).flatten(-2)
            return Quantized(vectors, codes, logits.softmax(dim=-1))
