"""Labelled frames of a stream in bounded memory: some to learn from, the newest blocks held out to test on."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ssl_suite.functional.handover import held_out

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
        block: frames of a block.
        hold_out: every so many-th block is held out.
        limit: held-out frames kept; older ones become frames to learn from.
        seed: seed of what is kept.

    Raises:
        ValueError: a number out of range.
    """

    h: Tensor
    value: Tensor
    seen: Tensor

    def __init__(self, width: int, bin_width: float, *, bins: int = 16, capacity: int = 100, block: int = 20, hold_out: int = 3,
                 limit: int = 100, seed: int = 0) -> None:
        super().__init__()
        if min(width, bins, capacity, block, limit) < 1 or hold_out < 2 or bin_width <= 0:
            raise ValueError(f"capacity={capacity}, block={block}, bins={bins} and limit={limit} must be at least 1, "
                             f"hold_out={hold_out} at least 2 (every other block), bin_width={bin_width} above 0")
        self.bin_width, self.block, self.hold_out, self.limit, self.seed = bin_width, block, hold_out, limit, seed
        self.register_buffer("h", torch.zeros(bins, capacity, width))
        self.register_buffer("value", torch.zeros(bins, capacity))
        self.register_buffer("seen", torch.zeros(bins, dtype=torch.int64))
        self.fresh: list[Frame] = []
        self.held: list[Frame] = []

    def add(self, frame: int, h: Tensor, value: float) -> None:
        """Take in the descriptor (D,) and the label of the frame of that number."""
        (self.held if held_out(frame, self.block, self.hold_out) else self.fresh).append((h, value))

    def release(self) -> None:
        """Make ordinary frames of those held out: they are of a behaviour that is over."""
        self.fresh, self.held = self.fresh + self.held, []

    def settle(self) -> None:
        """Offer the waiting frames, and held-out ones beyond the limit, to the bins."""
        surplus = max(len(self.held) - self.limit, 0)
        for h, value in self.fresh + self.held[:surplus]:
            b = min(max(int(value / self.bin_width), 0), len(self.seen) - 1)
            count, capacity = int(self.seen[b]), self.value.shape[1]
            slot = count if count < capacity else int(np.random.default_rng((self.seed, b, count)).integers(count + 1))
            if slot < capacity:
                self.h[b, slot], self.value[b, slot] = h, value
            self.seen[b] += 1
        self.fresh, self.held = [], self.held[surplus:]

    def to_learn(self) -> tuple[Tensor, Tensor]:
        """Descriptors (N, D) and labels (N,) to learn from."""
        kept = torch.arange(self.value.shape[1]) < self.seen[:, None]
        return self.h[kept], self.value[kept]

    def to_test(self) -> tuple[Tensor, Tensor]:
        """Descriptors (N, D) and labels (N,) of the held-out frames of the current behaviour, oldest first."""
        h = torch.stack([h for h, _ in self.held]) if self.held else self.h.new_zeros(0, self.h.shape[2])
        return h, h.new_tensor([value for _, value in self.held])

    def clear(self) -> None:
        """Forget everything."""
        self.fresh, self.held = [], []
        for buffer in self.buffers():
            buffer.zero_()

    def get_extra_state(self) -> Any:
        return {"fresh": list(self.fresh), "held": list(self.held)}

    def set_extra_state(self, state: Any) -> None:
        self.fresh, self.held = list(state["fresh"]), list(state["held"])
