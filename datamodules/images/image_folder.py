"""Pictures in folders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from datamodules.base import SourceDataModule
from datamodules.loader import Decode, decoder
from ssl_suite.data.arrays import Where, class_numbers, divide_rows
from ssl_suite.data.files import PICTURES, Columns, Encoded, EncodedSource, PictureFiles, scan
from ssl_suite.data.sources import Source


class ImageFolderDataModule(SourceDataModule):
    """Picture files in ``CLASS/``, in ``train/CLASS/`` and ``test/CLASS/``, or without classes in one folder.

    JPEG, PNG, WebP, GIF and BMP, decoded in the loader's workers at every fetch. For small pictures
    ``scripts/prepare_arrays.py`` makes arrays, which are faster.

    Args:
        path: the folder.
        size: side of the pictures in pixels: the shorter side is brought to it, the middle kept.
        test_where: test rows, as ``{labels: [cat]}``, or ``end`` for the last; None follows the folders ``train`` and
            ``test`` where there are.
        test_fraction: share held out where there are no such folders.
        max_bad: unreadable files to put up with in each process; each is replaced by a fixed other one of its class.
        decode: who decodes: ``workers``, or ``device`` (`datamodules.loader.DeviceLoader`).
        common: see `SourceDataModule`.

    Raises:
        FileNotFoundError: the folder does not exist or holds no pictures.
        ValueError: too many files cannot be read.
    """

    modality = "images"

    def __init__(self, path: str | Path, *, size: int = 64, test_where: Where = None, test_fraction: float = 0.2,
                 max_bad: int = 10, decode: Decode = "workers", **common: Any) -> None:
        super().__init__(**common)
        if size < 1:
            raise ValueError(f"data.size={size} must be at least 1 pixel")
        self.decode = decoder(decode, size)
        self.path, self.size, self.test_where = path, size, test_where
        self.test_fraction, self.max_bad = test_fraction, max_bad
        self.names: tuple[str, ...] = ()

    def class_names(self) -> tuple[str, ...]:
        return self.names

    def pictures(self) -> tuple[Encoded, Columns]:
        """All pictures, and what is known of each."""
        files, columns = scan(self.path, PICTURES)
        return PictureFiles(files), columns

    def sources(self) -> dict[str, Source]:
        pictures, columns = self.pictures()
        labels, self.names = class_numbers({"all": columns.get("labels")})
        y = labels["all"]
        rows = self.rows = divide_rows(columns, len(pictures), y, self.test_where, self.test_fraction, self.seed)
        return {part: EncodedSource(pictures[r], self.size, None if y is None else y[r], self.max_bad)
                for part, r in rows.items()}
