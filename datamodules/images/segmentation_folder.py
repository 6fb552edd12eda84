"""Pictures and masks in folders."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from datamodules.base import SourceDataModule
from ssl_suite.data.arrays import Where, divide_rows, existing
from ssl_suite.data.files import PICTURES, scan
from ssl_suite.data.masks import MaskFiles, WithPseudoMasks, class_table
from ssl_suite.data.sources import Source


class SegmentationFolderDataModule(SourceDataModule):
    """Picture files in ``images/`` and masks of the same names in ``masks/``, or both in ``train/`` and in ``test/``.

    A mask is a PNG (or BMP) of one channel or with a palette, whose numbers are classes; it is decoded at every fetch, like the
    picture. The names of the classes stand in ``classes.json`` (a list), unless they are given.

    Args:
        path: the folder.
        classes: names of the classes, by their number in the masks; None reads ``classes.json``.
        images: name of the folders of pictures, as ``JPEGImages``.
        masks_in: name of the folders of masks, as ``SegmentationClass``.
        size: side in pixels: the shorter side is brought to it, the middle kept.
        ignore: numbers in the masks that do not count, besides 255.
        test_where: test rows, as ``{split: [test]}``, or ``end`` for the last; None follows the folders ``train`` and
            ``test`` where there are.
        test_fraction: share held out where there are no such folders.
        pseudo_masks: file of masks that an earlier model guessed of training pictures; see `WithPseudoMasks`.
        common: see `SourceDataModule`.

    Raises:
        FileNotFoundError: the folder does not exist or holds no pictures, or a picture has no mask.
        ValueError: the classes have no names, or nothing lies in a folder of pictures.
    """

    modality = "images"
    masks = True

    def __init__(self, path: str | Path, *, classes: Sequence[str] | None = None, images: str = "images", masks_in: str = "masks",
                 size: int = 256, ignore: Sequence[int] = (), test_where: Where = None,
                 test_fraction: float = 0.2, pseudo_masks: str | Path | None = None, **common: Any) -> None:
        super().__init__(**common)
        if size < 1:
            raise ValueError(f"data.size={size} must be at least 1 pixel")
        self.path, self.classes, self.images, self.masks_in = path, classes, images, masks_in
        self.size, self.ignore, self.pseudo_masks = size, ignore, pseudo_masks
        self.test_where, self.test_fraction = test_where, test_fraction
        self.names: tuple[str, ...] = ()

    def class_names(self) -> tuple[str, ...]:
        return self.names

    def sources(self) -> dict[str, Source]:
        root = existing(self.path)
        table, self.names = class_table(self._names(root), self.ignore)
        files, columns = scan(root, PICTURES)
        chosen = [i for i, file in enumerate(files) if file.parent.name == self.images]
        if not chosen:
            raise ValueError(f"data.path={root} has no pictures in a folder {self.images}; name it with data.images=FOLDER")
        pairs = [(files[i], self._mask(files[i])) for i in chosen]
        columns = {key: values[chosen] for key, values in columns.items() if key == "split"}
        rows = self.rows = divide_rows(columns, len(pairs), None, self.test_where, self.test_fraction, self.seed)
        parts: dict[str, Source] = {part: MaskFiles([pairs[i] for i in r], self.size, table) for part, r in rows.items()}
        if self.pseudo_masks is not None:
            parts["train"] = WithPseudoMasks(parts["train"], self.pseudo_masks, len(self.names))
        return parts

    def _names(self, root: Path) -> Sequence[str]:
        if self.classes is not None:
            return self.classes
        listed = root / "classes.json"
        if not listed.is_file():
            raise ValueError(f"{listed} does not exist; list the names of the classes in it, or set data.classes=[...]")
        names: list[str] = json.loads(listed.read_text())
        return names

    def _mask(self, picture: Path) -> Path:
        folder = picture.parent.parent / self.masks_in
        found = [folder / f"{picture.stem}{ending}" for ending in (".png", ".bmp")]
        for mask in found:
            if mask.is_file():
                return mask
        raise FileNotFoundError(f"{picture} has no mask {found[0]}; add it, remove the picture, or set data.masks_in")
