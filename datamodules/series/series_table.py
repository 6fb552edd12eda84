"""One long series in a table, cut into windows."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from datamodules.base import SourceDataModule
from ssl_suite.config import require
from ssl_suite.data.arrays import class_numbers, existing
from ssl_suite.data.series import WindowSource
from ssl_suite.data.sources import Source


class SeriesTableDataModule(SourceDataModule):
    """Sliding windows over the rows of a CSV or Parquet file, split by time.

    The rows are cut into three stretches, first train, then val, then test; no window reaches across a cut.

    Args:
        path: ``.csv`` or ``.parquet`` file, one row per time step, in order.
        window: rows in a window.
        stride: rows from one window to the next.
        columns: columns to read as channels; None takes all numeric ones but the target.
        target: column whose value in the last row of a window is its class; None for windows without labels.
        test_fraction: last share of the rows, for the test.
        common: see `SourceDataModule`; ``val_fraction`` is the share of the rows before the test.

    Raises:
        FileNotFoundError: the file does not exist.
        ImportError: pandas is missing.
        ValueError: an unknown column, missing values, or a stretch shorter than a window.
    """

    modality = "series"

    def __init__(self, path: str | Path, *, window: int = 96, stride: int = 24, columns: Sequence[str] | None = None,
                 target: str | None = None, test_fraction: float = 0.2, **common: Any) -> None:
        super().__init__(**common)
        if window < 2 or stride < 1:
            raise ValueError(f"data.window={window} must be at least 2 and data.stride={stride} at least 1")
        if not 0 < test_fraction < 1 - self.val_fraction:
            raise ValueError(
                f"data.test_fraction={test_fraction} must be above 0, and below 1 together with data.val_fraction"
            )
        self.path, self.window, self.stride = path, window, stride
        self.columns, self.target, self.test_fraction = columns, target, test_fraction
        self.names: tuple[str, ...] = ()

    def class_names(self) -> tuple[str, ...]:
        return self.names

    def sources(self) -> dict[str, Source]:
        values, labels = self._read()
        rows = values.shape[1]
        first_val = round(rows * (1 - self.val_fraction - self.test_fraction))
        cuts = (0, first_val, round(rows * (1 - self.test_fraction)), rows)
        parts: dict[str, Source] = {}
        for part, low, high in zip(("train", "val", "test"), cuts[:-1], cuts[1:], strict=True):
            if low == high and part == "val":
                continue
            starts = np.arange(low, high - self.window + 1, self.stride)
            if len(starts) == 0:
                raise ValueError(f"the {part} stretch has {high - low} rows, fewer than data.window={self.window}")
            targets = None if labels is None else labels[starts + self.window - 1]
            parts[part] = WindowSource(values, starts, self.window, targets)
        return parts

    def _read(self) -> tuple[np.ndarray, np.ndarray | None]:
        """Channels (C, rows) float32, and a class number for every row."""
        path, pandas = existing(self.path), require("pandas", extra="series")
        try:
            table = pandas.read_parquet(path) if path.suffix in (".parquet", ".pq") else pandas.read_csv(path)
        except (ValueError, OSError) as error:
            raise ValueError(f"data.path={path} cannot be read as a table ({error})") from error
        if self.columns is None:
            columns = [c for c in table.columns if table[c].dtype.kind in "iufb" and c != self.target]
        else:
            columns = list(self.columns)
        missing = [c for c in (*columns, *([self.target] if self.target else [])) if c not in table.columns]
        if missing or not columns:
            raise ValueError(
                f"{path} has no numeric column {', '.join(missing) or 'at all'}; "
                f"it has {', '.join(map(str, table.columns))}"
            )
        for column in columns:
            bad = ~np.isfinite(np.asarray(table[column], dtype=np.float64))
            if bad.any():
                raise ValueError(
                    f"column {column} of {path} lacks {int(bad.sum())} values, first in row {int(bad.argmax())}; "
                    "fill them first"
                )
        values = np.ascontiguousarray(table[columns].to_numpy(np.float32).T)
        if self.target is None:
            return values, None
        labels, self.names = class_numbers({"rows": table[self.target].to_numpy()})
        return values, labels["rows"]
