"""Labelled frames of a stream in bounded memory."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

Frame = tuple[Tensor, float]


class FrameStore(nn.Module):
    """Frames to learn from lie in bins of their label; of all that fell into a bin, a uniform sample is kept.

    Reservoir sampling (algorithm R, Vitter, 1985) per bin bounds the memory and keeps rare labels from being drowned by
    frequent ones. What is drawn depends on the seed, the bin and how many it saw, so that no generator has to be saved. New
    frames wait until `settle`, so that what `to_learn` returns changes only there.

    Args:
        width: D, length of a descriptor.
        bin_width: width of a bin in the units of the label; the first and the last bin take what lies beyond.
        bins: number of bins.
        capacity: frames kept in each bin.
        seed: seed of what is kept.

    Raises:
        ValueError: a number out of range.
    """

    h: Tensor
    value: Tensor
    seen: Tensor

    def __init__(self, width: int, bin_width: float, *, bins: int = 16, capacity: int = 100, seed: int = 0) -> None:
        super().__init__()
        if min(width, bins, capacity) < 1 or bin_width <= 0:
            raise ValueError(f"width={width}, capacity={capacity} and bins={bins} must be at least 1, "
                             f"bin_width={bin_width} above 0")
        self.bin_width, self.seed = bin_width, seed
        self.register_buffer("h", torch.zeros(bins, capacity, width))
        self.register_buffer("value", torch.zeros(bins, capacity))
        self.register_buffer("seen", torch.zeros(bins, dtype=torch.int64))
        self.fresh: list[Frame] = []

    def add(self, h: Tensor, value: float) -> None:
        """Take in the descriptor (D,) and the label of a frame."""
        self.fresh.append((h, value))

    def settle(self) -> None:
        """Offer the waiting frames to the bins."""
        for h, value in self.fresh:
            b = min(max(int(value / self.bin_width), 0), len(self.seen) - 1)
            count, capacity = int(self.seen[b]), self.value.shape[1]
            slot = count if count < capacity else int(np.random.default_rng((self.seed, b, count)).integers(count + 1))
            if slot < capacity:
                self.h[b, slot], self.value[b, slot] = h, value
            self.seen[b] += 1
        self.fresh = []

    def to_learn(self) -> tuple[Tensor, Tensor]:
        """Descriptors (N, D) and labels (N,) to learn from."""
        kept = torch.arange(self.value.shape[1]) < self.seen[:, None]
        return self.h[kept], self.value[kept]

    def clear(self) -> None:
        """Forget everything."""
        self.fresh = []
        for buffer in self.buffers():
            buffer.zero_()

    def get_extra_state(self) -> Any:
        return {"fresh": list(self.fresh)}

    def set_extra_state(self, state: Any) -> None:
        self.fresh = list(state["fresh"])
