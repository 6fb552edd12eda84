"""Sources: where samples come from, as raw tensors. A source fetches a whole batch at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch.utils.data import Dataset

from ssl_suite.batch import Batch


class Source(Protocol):
    """Raw samples with their labels.

    Attributes:
        targets: class number of every sample, (N,), or None.
        lengths: time steps of every sample, (N,), or None where all are equal.

    A source may also have ``blocks``, (N,): the number of the block that each sample lies in, where samples of one block are
    best read together. An epoch then goes through the blocks in random order (see `ssl_suite.data.sampler.block_order`).
    """

    targets: np.ndarray | None
    lengths: np.ndarray | None

    def __len__(self) -> int: ...

    def fetch(self, indices: np.ndarray) -> Batch:
        """The samples at ``indices`` as one batch: x, and length, y, y_length where the source has them."""
        ...


class ArraySource:
    """Samples held in one array, in memory or memory-mapped; a batch is as long as its longest sample.

    Args:
        x: samples along the first axis: uint8 (N, C, H, W), int16 or float (N, T), float (N, C, T).
        targets: class numbers, (N,).
        lengths: valid time steps, (N,).

    Raises:
        ValueError: the arrays differ in length.
    """

    def __init__(self, x: np.ndarray, targets: np.ndarray | None = None, lengths: np.ndarray | None = None) -> None:
        for name, other in (("targets", targets), ("lengths", lengths)):
            if other is not None and len(other) != len(x):
                raise ValueError(f"{len(x)} samples but {len(other)} {name}")
        self.x, self.targets, self.lengths = x, targets, lengths

    def __len__(self) -> int:
        return len(self.x)

    def fetch(self, indices: np.ndarray) -> Batch:
        x = self.x[indices]
        batch: Batch = {}
        if self.lengths is not None:
            lengths = self.lengths[indices].astype(np.int64)
            x = x[..., : lengths.max()]
            batch["length"] = torch.from_numpy(lengths)
        batch["x"] = torch.from_numpy(np.ascontiguousarray(x))
        if self.targets is not None:
            batch["y"] = torch.from_numpy(self.targets[indices].astype(np.int64))
        return batch


class TransitionSource:
    """Steps of a controlled process held in arrays: what was seen, what was done, what was seen next.

    Args:
        x: observations, (N, ...) like the samples of `ArraySource`.
        following: the observation after each, of the same shape.
        action: what was done in between, (N, A) float32.
        right: what an expert would have done, (N, A) float32.

    Raises:
        ValueError: the arrays do not fit each other.
    """

    targets: np.ndarray | None = None
    lengths: np.ndarray | None = None

    def __init__(self, x: np.ndarray, following: np.ndarray, action: np.ndarray, right: np.ndarray) -> None:
        if x.shape != following.shape or action.shape != right.shape or len(x) != len(action) or action.ndim != 2:
            raise ValueError(f"observations {x.shape} and {following.shape}, actions {action.shape} and {right.shape} do not "
                             "belong to the same transitions; give (N, ...) twice and (N, A) twice")
        self.x, self.following, self.action, self.right = x, following, action, right

    def __len__(self) -> int:
        return len(self.x)

    def fetch(self, indices: np.ndarray) -> Batch:
        columns = {"x": self.x, "next": self.following, "action": self.action, "y": self.right}
        return {key: torch.from_numpy(np.ascontiguousarray(values[indices])) for key, values in columns.items()}


class JoinedSource:
    """The samples of several sources end to end, without their labels.

    Args:
        sources: of samples of one kind; those of unequal length are padded to the longest of a batch.

    Attributes:
        starts: where each source begins.
    """

    targets: np.ndarray | None = None
    lengths: np.ndarray | None = None

    def __init__(self, sources: Sequence[Source]) -> None:
        self.sources = sources
        self.starts = np.cumsum([0, *map(len, sources)])

    def __len__(self) -> int:
        return int(self.starts[-1])

    def fetch(self, indices: np.ndarray) -> Batch:
        which = np.searchsorted(self.starts, indices, side="right") - 1
        order = np.argsort(which, kind="stable")
        pieces = [self.sources[s].fetch(indices[which == s] - self.starts[s]) for s in np.unique(which)]
        back, longest = torch.from_numpy(np.argsort(order)), max(piece["x"].shape[-1] for piece in pieces)
        batch: Batch = {"x": torch.cat([F.pad(p["x"], (0, longest - p["x"].shape[-1])) for p in pieces])[back]}
        if any("length" in piece for piece in pieces):
            batch["length"] = torch.cat([p.get("length", torch.full((len(p["x"]),), p["x"].shape[-1])) for p in pieces])[back]
        return batch


class Indexed(Dataset[Batch]):
    """A source as a map-style data set for a batch sampler: takes a list of (epoch, index), gives one collated batch.

    Args:
        source: where the samples come from.
        targets: labels to give instead of the source's own (noisy labels, say): classes (N,), or soft targets (N, K).
        labeled: False drops ``y``, so that nothing downstream can see a label by accident.

    Attributes:
        encoded: ask the source for ``encoded`` pictures in the place of ``x``; for `ssl_suite.data.files.EncodedSource`.
    """

    def __init__(self, source: Source, targets: np.ndarray | None = None, labeled: bool = True) -> None:
        self.source, self.targets, self.labeled, self.encoded = source, targets, labeled, False

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, pair: tuple[int, int]) -> Batch:
        return self.__getitems__([pair])

    def __getitems__(self, pairs: list[tuple[int, int]]) -> Batch:
        epochs, indices = np.array(pairs, dtype=np.int64).T
        batch: Batch = self.source.encoded(indices) if self.encoded else self.source.fetch(indices)  # type: ignore[attr-defined]
        batch["index"], batch["epoch"] = torch.from_numpy(indices.copy()), torch.from_numpy(epochs.copy())
        if not self.labeled:
            batch.pop("y", None)
            batch.pop("y_length", None)
        elif self.targets is not None:
            y = self.targets[indices]
            batch["y"] = torch.from_numpy(y.astype(np.int64 if y.ndim == 1 else np.float32))
        return batch


def as_is(batch: Any) -> Any:
    """Collate function of `Indexed`, which collates by itself."""
    return batch
