"""Samples of unequal length: read one by one, padded together into a batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch

from ssl_suite.batch import Batch


class RaggedSource:
    """Samples of unequal length along the last axis, and optionally transcripts.

    Args:
        read: gives sample i: a waveform (T_i,) int16 or a series (C, T_i) float32.
        lengths: time steps of every sample, (N,).
        targets: class numbers, (N,).
        symbols: symbol numbers of every transcript; given, ``y`` is (B, L) padded with -1 and ``y_length`` its lengths.

    Attributes:
        blocks: see `ssl_suite.data.sources.Source`.

    Raises:
        ValueError: the arguments differ in length, or a sample is empty.
    """

    blocks: np.ndarray | None = None

    def __init__(self, read: Callable[[int], np.ndarray], lengths: np.ndarray, targets: np.ndarray | None = None,
                 symbols: Sequence[np.ndarray] | None = None) -> None:
        for name, other in (("targets", targets), ("transcripts", symbols)):
            if other is not None and len(other) != len(lengths):
                raise ValueError(f"{len(lengths)} samples but {len(other)} {name}")
        if len(lengths) and lengths.min() < 1:
            raise ValueError(f"sample {int(lengths.argmin())} is empty; remove it from the data")
        self.read, self.symbols = read, symbols
        self.lengths: np.ndarray | None = np.asarray(lengths, dtype=np.int64)
        self.targets = targets

    def __len__(self) -> int:
        return len(self.lengths) if self.lengths is not None else 0

    def fetch(self, indices: np.ndarray) -> Batch:
        found = {i: self.read(i) for i in np.unique(indices).tolist()}  # in the order in which they lie
        samples = [found[i] for i in indices.tolist()]
        length = np.array([s.shape[-1] for s in samples], dtype=np.int64)
        batch: Batch = {"x": torch.from_numpy(pad(samples)), "length": torch.from_numpy(length)}
        if self.symbols is not None:
            rows = [self.symbols[int(i)] for i in indices]
            batch["y"] = torch.from_numpy(pad(rows, -1))
            batch["y_length"] = torch.tensor([len(row) for row in rows])
        elif self.targets is not None:
            batch["y"] = torch.from_numpy(self.targets[indices].astype(np.int64))
        return batch


def pad(samples: Sequence[np.ndarray], value: int = 0) -> np.ndarray:
    """Stack arrays that differ in their last axis, filled up at the end."""
    longest = max(s.shape[-1] for s in samples)
    out = np.full((len(samples), *samples[0].shape[:-1], longest), value, dtype=samples[0].dtype)
    for row, sample in zip(out, samples, strict=True):
        row[..., : sample.shape[-1]] = sample
    return out


class Pieces:
    """Reads sample i out of pieces stored end to end: (S,) gives waveforms (T_i,), (S, C) gives series (C, T_i)."""

    def __init__(self, flat: np.ndarray, offsets: np.ndarray) -> None:
        self.flat, self.offsets = flat, offsets

    def __call__(self, i: int) -> np.ndarray:
        piece = self.flat[self.offsets[i] : self.offsets[i + 1]]
        return np.asarray(piece) if piece.ndim == 1 else np.ascontiguousarray(piece.T, dtype=np.float32)


class Rows:
    """Reads row i of a padded array (N, ..., T) up to its length."""

    def __init__(self, x: np.ndarray, lengths: np.ndarray) -> None:
        self.x, self.lengths = x, lengths

    def __call__(self, i: int) -> np.ndarray:
        return np.asarray(self.x[i, ..., : self.lengths[i]])


class Chosen:
    """Reads some of another reader's samples, numbered anew."""

    def __init__(self, read: Callable[[int], np.ndarray], rows: np.ndarray) -> None:
        self.read, self.rows = read, rows

    def __call__(self, i: int) -> np.ndarray:
        return self.read(int(self.rows[i]))
