"""A memory of labelled descriptors that does not grow: reservoir sampling per bin of the label."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn


class BinnedReservoir(nn.Module):
    """Of all that fell into a bin, a uniform sample of ``capacity`` (algorithm R, Vitter, 1985).

    Bins keep rare values from being drowned by frequent ones. What is drawn depends on the seed, the bin and how many it saw,
    so that no generator has to be saved.

    Args:
        width: D, length of a descriptor.
        bins: number of bins; the first and the last take what lies beyond.
        bin_width: width of a bin in the units of the label.
        capacity: entries kept in each bin.
        seed: seed of what is kept.
    """

    h: Tensor
    value: Tensor
    seen: Tensor

    def __init__(self, width: int, bins: int, bin_width: float, capacity: int, seed: int = 0) -> None:
        super().__init__()
        self.bin_width, self.seed = bin_width, seed
        self.register_buffer("h", torch.zeros(bins, capacity, width))
        self.register_buffer("value", torch.zeros(bins, capacity))
        self.register_buffer("seen", torch.zeros(bins, dtype=torch.int64))

    def __len__(self) -> int:
        return int(self.seen.clamp(max=self.value.shape[1]).sum())

    def add(self, h: Tensor, value: float) -> None:
        """Offer one descriptor (D,) with its label."""
        b = min(max(int(value / self.bin_width), 0), len(self.seen) - 1)
        count, capacity = int(self.seen[b]), self.value.shape[1]
        slot = count if count < capacity else int(np.random.default_rng((self.seed, b, count)).integers(count + 1))
        if slot < capacity:
            self.h[b, slot], self.value[b, slot] = h, value
        self.seen[b] += 1

    def clear(self) -> None:
        """Forget everything."""
        for buffer in self.buffers():
            buffer.zero_()

    def content(self) -> tuple[Tensor, Tensor]:
        """All that is kept: descriptors (N, D) and labels (N,)."""
        kept = torch.arange(self.value.shape[1]) < self.seen[:, None]
        return self.h[kept], self.value[kept]
