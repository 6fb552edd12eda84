"""A budget of time and memory for each batch, kept by leaving updates out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

LONGEST_PAUSE = 64


class Budget:
    """Keeps the mean time of a batch, and the memory of an update, below limits.

    Time: an update that took longer than ``max_ms`` is followed by batches that are only predicted: as many as bring the
    mean down to the limit, at most 64, and twice as many at each further one in a row. Memory: what an update keeps for its
    backward pass is counted at the first batch of every shape of sample; later batches whose share would pass ``max_mib``
    are only predicted.

    Args:
        max_ms: milliseconds that adapting to a batch and predicting it may take; None sets no limit.
        max_mib: MiB that an update may keep for its backward pass; None sets no limit. Weights, their gradients and the
            optimizer's state come on top and do not depend on the batch.

    Raises:
        ValueError: a limit that is not positive.
    """

    def __init__(self, max_ms: float | None = None, max_mib: float | None = None) -> None:
        for key, value in {"max_ms": max_ms, "max_mib": max_mib}.items():
            if value is not None and not value > 0:
                raise ValueError(f"budget.{key}={value} must be positive; null sets no limit")
        self.max_ms, self.max_mib = max_ms, max_mib
        self.pause, self.streak = 0, 0
        self.mib_per_sample: dict[tuple[int, ...], float] = {}

    def refuses(self, x: Tensor) -> str:
        """Why a batch is only to be predicted; empty where it may be learned from."""
        need = self.mib_per_sample.get(tuple(x.shape[1:]), 0.0) * len(x)
        if self.max_mib is not None and need > self.max_mib:
            return f"an update on {len(x)} samples keeps {need:.0f} MiB, over budget.max_mib={self.max_mib:g}"
        if self.pause:
            self.pause -= 1
            return f"an update took longer than budget.max_ms={self.max_ms:g}; {self.pause} more batches are only predicted"
        return ""

    def spent(self, ms: float) -> None:
        """Take note of the time an update took."""
        over = self.max_ms is not None and ms > self.max_ms
        self.streak = self.streak + 1 if over else 0
        if self.max_ms is not None and over:
            self.pause = min(LONGEST_PAUSE, 2 ** min(self.streak - 1, 6) * int(ms / self.max_ms))

    @contextmanager
    def measured(self, x: Tensor, weights: Iterable[Tensor]) -> Iterator[None]:
        """Count what is kept for the backward pass within, where memory is limited and this shape of sample new."""
        shape = tuple(x.shape[1:])
        if self.max_mib is None or shape in self.mib_per_sample or not len(x):
            yield
            return
        meter = _Meter(p.untyped_storage().data_ptr() for p in weights)
        with torch.autograd.graph.saved_tensors_hooks(meter.pack, _Kept.unpack):
            yield
        self.mib_per_sample[shape] = meter.peak / 2**20 / len(x)


class _Meter:
    """Bytes of the storages that autograd holds at a time, those of the weights left out."""

    def __init__(self, known: Iterable[int]) -> None:
        self.known, self.holders = set(known), Counter[int]()
        self.now = self.peak = 0

    def pack(self, t: Tensor) -> _Kept:
        return _Kept(t.detach(), self)

    def hold(self, storage: torch.UntypedStorage, count: int) -> None:
        at = storage.data_ptr()
        before, self.holders[at] = self.holders[at], self.holders[at] + count
        if at not in self.known and bool(before) != bool(self.holders[at]):
            self.now += count * storage.nbytes()
            self.peak = max(self.peak, self.now)


class _Kept:
    """A tensor in autograd's hands; counted until the backward pass lets go of it."""

    def __init__(self, t: Tensor, meter: _Meter) -> None:
        self.tensor, self.meter = t, meter
        meter.hold(t.untyped_storage(), 1)

    def unpack(self) -> Tensor:
        return self.tensor

    def __del__(self) -> None:
        self.meter.hold(self.tensor.untyped_storage(), -1)
