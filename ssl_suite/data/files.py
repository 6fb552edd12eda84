"""Folders and lists of files, and pictures decoded when they are fetched."""

from __future__ import annotations

import csv
import hashlib
import json
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from torchvision.io import ImageReadMode, decode_image, read_file
from torchvision.transforms.v2 import functional as tv

from ssl_suite.batch import Batch
from ssl_suite.data.arrays import PARTS, existing

PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp")
Columns = dict[str, np.ndarray]


def scan(root: str | Path, suffixes: Sequence[str]) -> tuple[list[Path], Columns]:
    """Files below a folder, sorted, with what their places say.

    A folder ``train`` (and ``test``, ``val``) at the top tells the parts; the next level tells the class. Files that
    lie at the level of the classes make the whole set unlabelled.

    Args:
        root: the folder.
        suffixes: endings to take, lower case.

    Returns:
        The files, and the columns ``labels`` and ``split`` as far as there are any.

    Raises:
        FileNotFoundError: no such folder, or no such files in it.
    """
    root = existing(root)
    files = sorted(
        f for f in root.rglob("*") if f.suffix.lower() in suffixes and f.is_file() and not f.name.startswith(".")
    )
    if not files:
        raise FileNotFoundError(f"data.path={root} holds no files ending in {', '.join(suffixes)}")
    places = [f.relative_to(root).parts for f in files]
    columns: Columns = {}
    words = {word for spellings in PARTS.values() for word in spellings}
    if all(place[0] in words for place in places) and {place[0] for place in places} & set(PARTS["train"]):
        if len({place[0] for place in places}) > 1:
            columns["split"] = np.array([place[0] for place in places])
        places = [place[1:] for place in places]
    if all(len(place) > 1 for place in places):
        columns["labels"] = np.array([place[0] for place in places])
    return files, columns


def read_manifest(path: str | Path) -> tuple[list[Path], Columns]:
    """Files listed in a ``.tsv`` (with a head line) or ``.jsonl`` file.

    Columns: ``path`` (relative to the list), ``text`` or ``label``, and optionally ``speaker``, ``split`` and others;
    each comes back as an array named in the plural (``texts``, ``labels``, ``speakers``), ``split`` as it is.

    Raises:
        FileNotFoundError: the list does not exist.
        ValueError: a line is damaged or lacks a column.
    """
    path = existing(path)
    try:
        with path.open(encoding="utf-8", newline="") as lines:
            rows = ([json.loads(line) for line in lines if line.strip()] if path.suffix in (".jsonl", ".json")
                    else list(csv.DictReader(lines, delimiter="\t", quoting=csv.QUOTE_NONE)))
    except (json.JSONDecodeError, UnicodeDecodeError, csv.Error) as error:
        raise ValueError(
            f"data.path={path} is no readable list ({error}); it must be .tsv with a head line, or .jsonl"
        ) from error
    if not rows or "path" not in rows[0]:
        raise ValueError(f"data.path={path} lists no files; it needs a column 'path' (and 'text' or 'label')")
    columns: Columns = {}
    for key in rows[0]:
        for number, row in enumerate(rows, start=1):
            if row.get(key) is None:
                raise ValueError(f"entry {number} of {path} lacks the column '{key}'")
        columns[key if key == "split" else f"{key}s"] = np.array([str(row[key]) for row in rows])
    return [path.parent / str(row["path"]) for row in rows], columns


def decode_picture(encoded: Path | Tensor, size: int) -> Tensor:
    """A picture as uint8 (3, size, size): the shorter side brought to ``size``, the middle kept.

    Args:
        encoded: a file, or its content, uint8 (bytes,).
        size: side in pixels.

    Raises:
        RuntimeError: the content is damaged or no picture.
    """
    content = encoded if isinstance(encoded, Tensor) else str(encoded)
    return to_square(decode_image(content, ImageReadMode.RGB, apply_exif_orientation=True), size)


def to_square(x: Tensor, size: int) -> Tensor:
    """A picture (3, H, W) as (3, size, size): the shorter side brought to ``size``, the middle kept."""
    return tv.center_crop(tv.resize(x, [size], antialias=True), [size, size])


class Encoded(Protocol):
    """Encoded pictures, wherever they lie; rows of them are chosen as of an array."""

    def __len__(self) -> int: ...

    def __getitem__(self, rows: np.ndarray) -> Encoded: ...

    def read(self, i: int) -> Path | Tensor:
        """Picture i as `decode_picture` takes it; RuntimeError or OSError where it cannot be had."""
        ...

    def name(self, i: int) -> str:
        """What messages call picture i."""
        ...


class PictureFiles:
    """Pictures in files of their own."""

    def __init__(self, files: Sequence[Path]) -> None:
        self.files = list(files)

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, rows: np.ndarray) -> PictureFiles:
        return PictureFiles([self.files[i] for i in rows])

    def read(self, i: int) -> Path:
        return self.files[i]

    def name(self, i: int) -> str:
        return str(self.files[i])


class EncodedSource:
    """Pictures of any size, decoded, resized and cut to a square when fetched, and so by the loader's workers.

    One that cannot be read is replaced by another of its class, chosen by a hash of its name, so that every epoch and process
    takes the same one.

    Args:
        pictures: the encoded pictures.
        size: side in pixels; the shorter side is brought to it, the middle kept.
        targets: class numbers, (N,).
        max_bad: unreadable pictures each process puts up with.

    Attributes:
        blocks: see `ssl_suite.data.sources.Source`.
    """

    lengths: np.ndarray | None = None
    blocks: np.ndarray | None = None

    def __init__(self, pictures: Encoded, size: int, targets: np.ndarray | None, max_bad: int) -> None:
        self.pictures, self.size, self.targets, self.max_bad = pictures, size, targets, max_bad
        self.bad: set[int] = set()

    def __len__(self) -> int:
        return len(self.pictures)

    def fetch(self, indices: np.ndarray) -> Batch:
        """Pictures as uint8 (B, 3, size, size), and their classes.

        Raises:
            ValueError: more than ``max_bad`` pictures cannot be read.
        """
        found = {i: self._picture(i) for i in np.unique(indices).tolist()}  # in the order in which they lie
        return {"x": torch.stack([found[i] for i in indices.tolist()]), **self._classes(indices)}

    def encoded(self, indices: np.ndarray) -> Batch:
        """Contents of the files, ``encoded``: a list of uint8 (bytes,), empty where one cannot be had; and their classes."""
        return {"encoded": [self._content(i) for i in indices.tolist()], **self._classes(indices)}

    def _classes(self, indices: np.ndarray) -> Batch:
        return {} if self.targets is None else {"y": torch.from_numpy(self.targets[indices].astype(np.int64))}

    def _content(self, i: int) -> Tensor:
        try:
            found = self.pictures.read(i)
            return found if isinstance(found, Tensor) else read_file(str(found))
        except (RuntimeError, OSError):
            return torch.empty(0, dtype=torch.uint8)

    def _picture(self, i: int) -> Tensor:
        for j in self._candidates(i):
            if j in self.bad:
                continue
            try:
                return decode_picture(self.pictures.read(j), self.size)
            except (RuntimeError, OSError) as error:
                self._report(j, error)
        raise ValueError(f"{self.pictures.name(i)} cannot be read, and no picture found to stand in for it; repair the data")

    def _candidates(self, i: int) -> Iterator[int]:
        """A picture, then up to 16 others of its class, in an order that its name alone decides."""
        yield i
        pool = np.arange(len(self)) if self.targets is None else np.flatnonzero(self.targets == self.targets[i])
        seed = int.from_bytes(hashlib.sha256(Path(self.pictures.name(i)).name.encode()).digest()[:8], "big")
        order = np.random.default_rng(seed).permutation(pool)
        yield from [int(j) for j in order[:17] if j != i][:16]

    def _report(self, j: int, error: Exception) -> None:
        self.bad.add(j)
        reason = str(error).splitlines()[0]
        if len(self.bad) > self.max_bad:
            names = ", ".join(self.pictures.name(k) for k in sorted(self.bad)[:3])
            raise ValueError(f"{len(self.bad)} pictures cannot be read, among them {names} ({reason}); remove them, "
                             f"or raise data.max_bad={self.max_bad}")
        warnings.warn(f"{self.pictures.name(j)} cannot be read ({reason}); another picture of its class stands in "
                      f"({len(self.bad)} of at most {self.max_bad})", stacklevel=2)
