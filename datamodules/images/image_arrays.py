"""Pictures in arrays: ``.npz`` archives, ``.npy`` files, folders of memory-mapped ``.npy`` files, packed JPEG."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from datamodules.base import SourceDataModule
from datamodules.loader import Decode, decoder
from ssl_suite.data.arrays import (
    ArrayFile,
    Where,
    as_pictures,
    balanced_prefix,
    class_numbers,
    divide_rows,
    find_keys,
    labels_key,
)
from ssl_suite.data.files import EncodedSource
from ssl_suite.data.packed import Packed, packed_parts, unpack
from ssl_suite.data.sources import ArraySource, Source


class ImageArraysDataModule(SourceDataModule):
    """Pictures of one size from arrays, with labels or without.

    Finds keys such as ``train_images`` and ``train_labels``, ``X_train`` and ``y_train``, or undivided ``images`` and
    ``labels``, from which a test part is then held out. Part keys like ``train_bytes`` are unpacked (see
    `ssl_suite.data.packed`; the first time takes about 0.05 ms a picture), or, with ``size``, left packed and decoded in
    the loader's workers at every fetch. A ``val`` part without a ``test`` part is the test.

    Args:
        path: ``.npz`` file, ``.npy`` file, or folder of ``.npy`` files.
        x: key of the pictures; None guesses.
        y: key of the labels; None guesses, and goes without where there are none.
        test_where: test rows of undivided data, key to values, as ``{drawers: [0, 1]}``; ``end`` for the last.
        test_fraction: share held out where the data have no parts, at random or the last.
        max_train: use this many training pictures, the first of each class in equal numbers.
        max_test: likewise for the test part.
        size: side in pixels of packed pictures, for those that differ in size or are too many to unpack: the shorter side
            is brought to it, the middle kept. None unpacks them.
        max_bad: with ``size``, unreadable pictures to put up with in each process; each is replaced by a fixed other one
            of its class.
        decode: with ``size``, who decodes: ``workers``, or ``device`` (`datamodules.loader.DeviceLoader`).
        common: see `SourceDataModule`.

    Raises:
        FileNotFoundError: the path does not exist.
        ValueError: no key fits, or the arrays are no pictures.
    """

    modality = "images"

    def __init__(self, path: str | Path, *, x: str | None = None, y: str | None = None, test_where: Where = None,
                 test_fraction: float = 0.2, max_train: int | None = None, max_test: int | None = None, size: int | None = None,
                 max_bad: int = 10, decode: Decode = "workers", **common: Any) -> None:
        super().__init__(**common)
        if size is not None and size < 1:
            raise ValueError(f"data.size={size} must be at least 1 pixel")
        self.decode = decoder(decode, size)
        self.path, self.x, self.y, self.test_where, self.test_fraction = path, x, y, test_where, test_fraction
        self.limits, self.size, self.max_bad = {"train": max_train, "test": max_test}, size, max_bad
        self.names: tuple[str, ...] = ()

    def class_names(self) -> tuple[str, ...]:
        return self.names

    def sources(self) -> dict[str, Source]:
        arrays = ArrayFile(self.path)
        packed = packed_parts(arrays) if self.x is None else ()
        if self.size is not None and not packed:
            raise ValueError(f"data.size={self.size} is for packed pictures, and {arrays.path} holds none; leave it out")
        pictures: dict[str, Any]
        if packed:
            pictures = {part: unpack(arrays, part) if self.size is None else Packed(arrays, part) for part in packed}
            found = {part: labels_key(arrays, self.y, part, len(pictures[part]), str(arrays.path)) for part in packed}
            labels = {part: None if y is None else arrays[y] for part, y in found.items()}
        else:
            keys = find_keys(arrays, self.x, self.y, str(arrays.path))
            pictures = {part: as_pictures(arrays[x], f"{x} in {arrays.path}") for part, (x, _) in keys.items()}
            labels = {part: None if y is None else arrays[y] for part, (_, y) in keys.items()}
        targets, self.names = class_numbers(labels, arrays.get("class_names"))
        if "all" in pictures:
            pictures, targets = self._divide(arrays, pictures["all"], targets["all"])
        return {part: self._source(part, pictures[part], targets[part]) for part in pictures}

    def _divide(self, arrays: ArrayFile, x: Any, y: np.ndarray | None) -> tuple[dict[str, Any], dict[str, np.ndarray | None]]:
        rows = self.rows = divide_rows(arrays, len(x), y, self.test_where, self.test_fraction, self.seed)
        return {part: x[r] for part, r in rows.items()}, {part: None if y is None else y[r] for part, r in rows.items()}

    def _source(self, part: str, x: np.ndarray | Packed, y: np.ndarray | None) -> Source:
        limit = self.limits.get(part)
        if limit is not None:
            rows = balanced_prefix(y, len(x), limit)
            x, y = x[rows], None if y is None else y[rows]
            self.rows = {**self.rows, part: self.rows[part][rows]} if self.rows else {}
        return EncodedSource(x, self.size or 0, y, self.max_bad) if isinstance(x, Packed) else ArraySource(x, y)
