"""Random numbers as a pure function of (seed, epoch, index): the same sample gets the same view, whatever its batch.

A generator draws in sequence, so what a sample gets depends on who came before it. Here every sample owns a 64-bit key and
every number is a hash of (key, counter), as in counter-based generators (Salmon et al., SC 2011). The hash is the finaliser
of SplitMix64 (Steele et al., OOPSLA 2014), written in wrapping int64 arithmetic so that it runs batched on any device.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

_GOLDEN = -7046029254386353131  # 0x9E3779B97F4A7C15 as int64
_MUL_1 = -4658895280553007687  # 0xBF58476D1CE4E5B9
_MUL_2 = -7723592293110705685  # 0x94D049BB133111EB


def _shift(x: Tensor, bits: int) -> Tensor:
    """Logical right shift of int64."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def mix(x: Tensor) -> Tensor:
    """Hash int64 numbers of any shape, elementwise."""
    x = (x ^ _shift(x, 30)) * _MUL_1
    x = (x ^ _shift(x, 27)) * _MUL_2
    return x ^ _shift(x, 31)


def sample_keys(seed: int, epoch: Tensor, index: Tensor, stream: int = 0) -> Tensor:
    """One key per sample.

    Args:
        seed: seed of the run.
        epoch: epoch of each sample, (B,) int64.
        index: index of each sample, (B,) int64.
        stream: number of the view, so that two views of one sample differ.

    Returns:
        Keys, (B,) int64.
    """
    key = mix(index + (seed * 2 + 1) * _GOLDEN % (1 << 62))
    return mix(mix(key + epoch * 1_000_003) + stream * 7_919)


class Draw:
    """A stream of random numbers for each row of a batch; successive calls give fresh, independent numbers.

    Args:
        keys: one key per sample, (B,) int64; its device is where the numbers are made.
    """

    def __init__(self, keys: Tensor) -> None:
        self.keys = keys
        self._calls = 0

    def __len__(self) -> int:
        return len(self.keys)

    def rows(self, selection: Tensor) -> Draw:
        """The streams of some rows only, from their start."""
        return Draw(self.keys[selection])

    def copies(self, n: int) -> Draw:
        """Row-wise repetition, (B*n,): every copy of a sample gets a stream of its own."""
        stream = torch.arange(n, device=self.keys.device).repeat(len(self.keys))
        return Draw(mix(self.keys.repeat_interleave(n) + stream * 104_729 + 1))

    def bits(self, *shape: int) -> Tensor:
        """Hashed int64 numbers, (B, *shape)."""
        self._calls += 1
        key = mix(self.keys + self._calls * 15_485_863)
        counter = torch.arange(1, math.prod(shape) + 1, device=self.keys.device) * _GOLDEN
        return mix(key[:, None] + counter).view(len(self.keys), *shape)

    def uniform(self, *shape: int, low: float = 0.0, high: float = 1.0) -> Tensor:
        """Uniform numbers in [low, high), (B, *shape) float32."""
        unit = _shift(self.bits(*shape), 40).float() * 2.0**-24
        return low + (high - low) * unit

    def normal(self, *shape: int) -> Tensor:
        """Standard normal numbers, (B, *shape) float32, by the Box-Muller transform."""
        bits = self.bits(*shape)
        radius = _shift(bits, 32).float().add_(1.0).mul_(2.0**-32).log_().mul_(-2.0).sqrt_()
        angle = (bits & 0xFFFFFFFF).float().mul_(2.0 * math.pi * 2.0**-32)
        return radius * angle.cos()

    def integers(self, high: int, *shape: int) -> Tensor:
        """Uniform integers in [0, high), (B, *shape) int64."""
        return _shift(self.bits(*shape), 1) % high

    def chance(self, p: float, *shape: int) -> Tensor:
        """True with probability ``p``, (B, *shape) bool."""
        return self.uniform(*shape) < p

    def permutation(self, n: int) -> Tensor:
        """A random order of 0..n-1 for each row, (B, n) int64."""
        return self.bits(n).argsort(dim=1)
