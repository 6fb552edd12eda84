"""Time series in arrays, and windows of tables, as sources."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

from ssl_suite.batch import Batch
from ssl_suite.data.sources import ArraySource


def series_source(x: np.ndarray, targets: np.ndarray | None, lengths: np.ndarray | None, where: str) -> ArraySource:
    """A source of series padded at their end, with NaN or with anything where ``lengths`` is given.

    Args:
        x: series, (N, C, T), or (N, T) for one channel.
        targets: class numbers, (N,).
        lengths: valid steps, (N,); None takes NaN at the end, in all channels, for padding.
        where: name for messages.

    Returns:
        Series as float32 (N, C, T), zeros as padding; ``lengths`` only where a series is shorter than T.

    Raises:
        ValueError: another shape, an empty series, or a value that is not finite within the valid steps.
    """
    if x.ndim == 2:
        x = x[:, None]
    if x.ndim != 3 or x.shape[2] == 0:
        raise ValueError(f"{where} has shape {x.shape}; series must be (N, T) or (N, channels, T)")
    x = np.asarray(x, dtype=np.float32)
    if lengths is None:
        present = ~np.isnan(x).all(axis=1)
        lengths = np.where(present.any(1), x.shape[2] - present[:, ::-1].argmax(1), 0)
    lengths = np.asarray(lengths, dtype=np.int64)
    valid = np.arange(x.shape[2]) < lengths[:, None]
    bad = (~np.isfinite(x) & valid[:, None]).any(axis=(1, 2)) | (lengths < 1)
    if bad.any():
        i = int(bad.argmax())
        what = "is empty" if lengths[i] < 1 else "holds NaN or infinite values within its valid steps"
        raise ValueError(f"sample {i} of {where} {what} ({int(bad.sum())} such in all); fill or remove them first")
    if valid.all():
        return ArraySource(x, targets)
    return ArraySource(np.where(valid[:, None], x, np.float32(0.0)), targets, lengths)


def archive_names(arrays: Mapping[str, np.ndarray]) -> tuple[str, ...]:
    """Names of the sets in an archive with keys ``NAME_X_train``."""
    return tuple(key.removesuffix("_X_train") for key in arrays if key.endswith("_X_train"))


class WindowSource:
    """Overlapping windows of one long series, cut when fetched.

    Args:
        values: the series, (C, rows) float32.
        starts: first row of each window, (N,).
        window: rows in a window.
        targets: class number of each window, (N,).
    """

    def __init__(self, values: np.ndarray, starts: np.ndarray, window: int, targets: np.ndarray | None = None) -> None:
        self.values, self.window = values, window
        self.views = np.lib.stride_tricks.sliding_window_view(values, window, axis=1)
        self.starts, self.targets = starts, targets
        self.lengths: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.starts)

    def fetch(self, indices: np.ndarray) -> Batch:
        batch: Batch = {"x": torch.from_numpy(self.views[:, self.starts[indices]].swapaxes(0, 1).copy())}
        if self.targets is not None:
            batch["y"] = torch.from_numpy(self.targets[indices].astype(np.int64))
        return batch
