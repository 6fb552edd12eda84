"""Pictures and masks in arrays: ``.npz`` archives and folders of ``.npy`` files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from datamodules.base import SourceDataModule
from ssl_suite.data.arrays import ArrayFile, Where, as_pictures, divide_rows, find_keys
from ssl_suite.data.masks import MaskArrays, WithPseudoMasks, class_table, mask_key, renumbered, resized
from ssl_suite.data.sources import Source


class SegmentationArraysDataModule(SourceDataModule):
    """Pictures with a class for every pixel.

    Finds ``train_images`` with ``train_masks`` or ``train_labels`` (N, H, W), or undivided ``images`` and ``masks``, from which a
    test part is then held out. Where an array ``sizes`` (N, 2) says how much of each picture is true, the rest is cut off before
    all are brought to one size. Classes are named by ``mask_names`` or ``class_names``, or else numbered.

    Args:
        path: ``.npz`` file, ``.npy`` file, or folder of ``.npy`` files.
        x: key of the pictures; None guesses.
        y: key of the masks; None guesses.
        size: side, or rows and columns, that pictures and masks are brought to; None keeps that of the arrays.
        ignore: numbers in the masks that do not count, besides 255.
        test_where: test rows of undivided data, key to values; ``end`` for the last.
        test_fraction: share held out where the data have no parts, at random or the last.
        pseudo_masks: file of masks that an earlier model guessed of training pictures; see `WithPseudoMasks`.
        common: see `SourceDataModule`.

    Raises:
        FileNotFoundError: a file does not exist.
        ValueError: no key fits, the arrays are no pictures or masks, or a mask holds a number that is no class.
    """

    modality = "images"
    masks = True

    def __init__(self, path: str | Path, *, x: str | None = None, y: str | None = None, size: int | Sequence[int] | None = None,
                 ignore: Sequence[int] = (), test_where: Where = None, test_fraction: float = 0.2,
                 pseudo_masks: str | Path | None = None, **common: Any) -> None:
        super().__init__(**common)
        self.path, self.x, self.y, self.ignore = path, x, y, ignore
        self.size = (size, size) if isinstance(size, int) else size
        self.test_where, self.test_fraction, self.pseudo_masks = test_where, test_fraction, pseudo_masks
        self.names: tuple[str, ...] = ()

    def class_names(self) -> tuple[str, ...]:
        return self.names

    def sources(self) -> dict[str, Source]:
        arrays = ArrayFile(self.path)
        keys = {part: (x, mask_key(arrays, x, self.y, str(arrays.path)))
                for part, (x, _) in find_keys(arrays, self.x, None, str(arrays.path)).items()}
        table, self.names = class_table(self._names(arrays, [y for _, y in keys.values()]), self.ignore)
        parts = {part: self._read(arrays, x, y, table) for part, (x, y) in keys.items()}
        if "all" in parts:
            x, masks = parts["all"]
            rows = self.rows = divide_rows(arrays, len(x), None, self.test_where, self.test_fraction, self.seed)
            parts = {part: (x[r], masks[r]) for part, r in rows.items()}
        sources: dict[str, Source] = {part: MaskArrays(*pair) for part, pair in parts.items()}
        if self.pseudo_masks is not None:
            sources["train"] = WithPseudoMasks(sources["train"], self.pseudo_masks, len(self.names))
        return sources

    def _names(self, arrays: ArrayFile, keys: Sequence[str]) -> list[str]:
        """Names of all numbers in the masks; those of ``class_names`` only if there are enough."""
        masks = [arrays[key] for key in keys]
        highest = max(int(np.max(m, initial=0, where=(m != 255) & ~np.isin(m, self.ignore))) for m in masks)
        for key in ("mask_names", "class_names"):
            if key in arrays and len(arrays[key]) > highest:
                return [str(name) for name in arrays[key]]
        return [str(number) for number in range(highest + 1)]

    def _read(self, arrays: ArrayFile, x: str, y: str, table: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        pictures = as_pictures(arrays[x], f"{x} in {arrays.path}")
        masks = renumbered(arrays[y], table, f"{y} in {arrays.path}")
        sizes = arrays.get(x.replace(x.rsplit("_", 1)[-1], "sizes"))
        return resized(pictures, masks, self.size or pictures.shape[2:], sizes)
