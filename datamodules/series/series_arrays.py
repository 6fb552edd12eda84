"""Time series in arrays: archives of one or several sets, folders of ``.npy`` files, pieces stored end to end."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from datamodules.base import SourceDataModule
from ssl_suite.data.arrays import ArrayFile, Where, class_numbers, divide_rows, find_keys, flat_key, labels_key
from ssl_suite.data.ragged import Chosen, Pieces, RaggedSource
from ssl_suite.data.series import archive_names, series_source
from ssl_suite.data.sources import Source


class SeriesArraysDataModule(SourceDataModule):
    """Series (N, C, T) or (N, T) from arrays, or (S, C) end to end with ``offsets`` (N+1,), with labels or without.

    Unequal lengths: NaN at the end, or an array of lengths beside each array of series (``len_train`` beside
    ``X_train``).

    Args:
        path: ``.npz`` file, ``.npy`` file, or folder of ``.npy`` files.
        name: set within an archive of several (keys ``NAME_X_train``, ``NAME_y_train``, ``NAME_classes``).
        x: key of the series; None guesses.
        y: key of the labels; None guesses, and goes without where there are none.
        test_where: test rows of undivided data, key to values, or ``end`` for the last; None follows ``split`` where the data
            hold it.
        test_fraction: share held out where there are neither parts nor ``split``.
        common: see `SourceDataModule`.

    Raises:
        FileNotFoundError: the path does not exist.
        ValueError: no key fits, or a series holds NaN within its valid steps.
    """

    modality = "series"

    def __init__(self, path: str | Path, *, name: str | None = None, x: str | None = None, y: str | None = None,
                 test_where: Where = None, test_fraction: float = 0.3,
                 **common: Any) -> None:
        super().__init__(**common)
        self.path, self.name, self.x, self.y = path, name, x, y
        self.test_where, self.test_fraction = test_where, test_fraction
        self.names: tuple[str, ...] = ()

    def class_names(self) -> tuple[str, ...]:
        return self.names

    def sources(self) -> dict[str, Source]:
        arrays = self._set(ArrayFile(self.path))
        if flat_key(arrays) is not None:
            return self._pieces(arrays)
        keys = find_keys(arrays, self.x, self.y, str(self.path))
        given = arrays.get("classes", arrays.get("class_names"))
        stored = {part: None if y is None else arrays[y] for part, (_, y) in keys.items()}
        labels, self.names = class_numbers(stored, given)
        if "all" not in keys:
            return {part: series_source(arrays[x], labels[part], _lengths(arrays, x), f"{x} in {self.path}")
                    for part, (x, _) in keys.items()}
        key, y = keys["all"][0], labels["all"]
        rows = self.rows = divide_rows(arrays, len(arrays[key]), y, self.test_where, self.test_fraction, self.seed)
        lengths = _lengths(arrays, key)
        return {part: series_source(arrays[key][r], None if y is None else y[r],
                                    None if lengths is None else lengths[r], f"{key} in {self.path}")
                for part, r in rows.items()}

    def _set(self, arrays: ArrayFile) -> Mapping[str, np.ndarray]:
        """The arrays of the set asked for, without its name in their keys."""
        sets = archive_names(arrays)
        if self.name is None and not sets:
            return arrays
        if self.name not in sets:
            raise ValueError(f"data.name={self.name}: {self.path} holds {', '.join(sets) or 'no named sets'}; "
                             "choose one of them")
        return {key.removeprefix(f"{self.name}_"): arrays[key] for key in arrays if key.startswith(f"{self.name}_")}

    def _pieces(self, arrays: Mapping[str, np.ndarray]) -> dict[str, Source]:
        flat, offsets = arrays[flat_key(arrays) or ""], np.asarray(arrays["offsets"], dtype=np.int64)
        n = len(offsets) - 1
        key = labels_key(arrays, self.y, "all", n, str(self.path))
        labels, self.names = class_numbers({"all": None if key is None else arrays[key]}, arrays.get("class_names"))
        y, read = labels["all"], Pieces(flat if flat.ndim > 1 else flat[:, None], offsets)
        rows = self.rows = divide_rows(arrays, n, y, self.test_where, self.test_fraction, self.seed)
        return {part: RaggedSource(Chosen(read, r), np.diff(offsets)[r], None if y is None else y[r])
                for part, r in rows.items()}


def _lengths(arrays: Mapping[str, np.ndarray], x: str) -> np.ndarray | None:
    """Lengths stored beside the series: ``len_train`` or ``lengths_train`` for ``X_train``, ``lengths`` for ``X``."""
    for suffix in ("_train", "_test", "_val"):
        if x.endswith(suffix):
            return arrays.get(f"len{suffix}", arrays.get(f"lengths{suffix}"))
    return arrays.get("lengths", arrays.get("len"))
