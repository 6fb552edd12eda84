"""Files of the UCR and UEA archives."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from datamodules.base import SourceDataModule
from ssl_suite.data.arrays import class_numbers
from ssl_suite.data.series import series_source
from ssl_suite.data.sources import Source
from ssl_suite.data.ucr import read_ts, train_and_test


class UCRDataModule(SourceDataModule):
    """A set given as NAME_TRAIN.ts and NAME_TEST.ts, univariate or multivariate, of equal lengths or not.

    Args:
        path: folder of the two files, or one of them.
        common: see `SourceDataModule`.

    Raises:
        FileNotFoundError: a file is missing.
        ImportError: aeon is missing.
        ValueError: a file cannot be read, or a series misses values in its middle.
    """

    modality = "series"

    def __init__(self, path: str | Path, **common: Any) -> None:
        super().__init__(**common)
        self.path = path
        self.names: tuple[str, ...] = ()

    def class_names(self) -> tuple[str, ...]:
        return self.names

    def sources(self) -> dict[str, Source]:
        files = dict(zip(("train", "test"), train_and_test(self.path), strict=True))
        parts = {part: read_ts(file) for part, file in files.items()}
        targets, self.names = class_numbers({part: y for part, (_, y) in parts.items()})
        return {part: series_source(x, targets[part], None, str(files[part])) for part, (x, _) in parts.items()}
