"""The ``.ts`` files of the UCR and UEA archives."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ssl_suite.config import require
from ssl_suite.data.arrays import existing


def equal_length(x: np.ndarray | Sequence[np.ndarray]) -> np.ndarray:
    """Series (N, C, T) float32, unequal ones padded with NaN at the end."""
    if isinstance(x, np.ndarray):
        return x.astype(np.float32)
    out = np.full((len(x), x[0].shape[0], max(s.shape[1] for s in x)), np.nan, dtype=np.float32)
    for row, series in zip(out, x, strict=True):
        row[:, : series.shape[1]] = series
    return out


def train_and_test(path: str | Path) -> tuple[Path, Path]:
    """The two files of a set: ``path`` is their folder, or either file (NAME_TRAIN.ts, NAME_TEST.ts).

    Raises:
        FileNotFoundError: one of them is missing.
        ValueError: the folder holds several sets.
    """
    path = existing(path)
    folder = path if path.is_dir() else path.parent
    found = (
        sorted(folder.glob("*_TRAIN.ts")) if path.is_dir() else [folder / path.name.replace("_TEST.ts", "_TRAIN.ts")]
    )
    if len(found) > 1:
        raise ValueError(
            f"data.path={folder} holds several sets ({', '.join(f.name for f in found)}); name one of these files"
        )
    pair = (found[0], found[0].with_name(found[0].name.replace("_TRAIN.ts", "_TEST.ts"))) if found else ()
    if not pair or not all(file.exists() for file in pair) or pair[0] == pair[1]:
        raise FileNotFoundError(f"data.path={path} holds no pair NAME_TRAIN.ts and NAME_TEST.ts")
    return pair[0], pair[1]


def read_ts(file: Path) -> tuple[np.ndarray, np.ndarray]:
    """Series (N, C, T) float32, padded with NaN, and labels (N,) as written.

    Raises:
        ImportError: aeon is missing.
        ValueError: the file cannot be read, or its targets are numbers to regress on.
    """
    load: Any = require("aeon.datasets", extra="series").load_from_ts_file
    try:
        x, y = load(str(file), replace_missing_vals_with="NaN")
    except (OSError, ValueError, IndexError, TypeError) as error:
        raise ValueError(f"{file} cannot be read as a .ts file with class labels ({error})") from error
    return equal_length(x), np.asarray(y)
