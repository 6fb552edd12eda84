"""Packed JPEG: many encoded pictures end to end in one array, decoded once into a memory-mapped cache or at every fetch.

Keys of a part: ``train_bytes`` uint8, ``train_offsets`` (N+1,), and optionally ``header`` uint8, the leading bytes that
all pictures share and that are stored once.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from rich.progress import track
from torch import Tensor
from torchvision.io import ImageReadMode, decode_image

from ssl_suite.data.cache import cache_dir, new_folder


def packed_parts(arrays: Mapping[str, np.ndarray]) -> tuple[str, ...]:
    """Names of the parts stored as packed pictures."""
    return tuple(
        key.removesuffix("_bytes")
        for key in arrays
        if key.endswith("_bytes") and f"{key.removesuffix('bytes')}offsets" in arrays
    )


class Packed:
    """The pictures of a part as they lie there, of any sizes.

    Args:
        arrays: the data.
        part: its name, as ``train``.
    """

    def __init__(self, arrays: Mapping[str, np.ndarray], part: str) -> None:
        self.header, self.part = arrays.get("header", np.empty(0, np.uint8)), part
        self.data, self.offsets = arrays[f"{part}_bytes"], np.asarray(arrays[f"{part}_offsets"], dtype=np.int64)
        self.rows = np.arange(len(self.offsets) - 1)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, rows: np.ndarray) -> Packed:
        chosen = copy.copy(self)
        chosen.rows = self.rows[rows]
        return chosen

    def read(self, i: int) -> Tensor:
        row = self.rows[i]
        return torch.from_numpy(np.concatenate([self.header, self.data[self.offsets[row] : self.offsets[row + 1]]]))

    def name(self, i: int) -> str:
        return f"picture {self.rows[i]} of {self.part}_bytes"


def unpack(arrays: Mapping[str, np.ndarray], part: str) -> np.ndarray:
    """Pictures of a part, memory-mapped uint8 (N, C, H, W); decoded at the first call, later read from the cache.

    The cache is keyed by the content, so a changed file is decoded anew.

    Raises:
        ValueError: a picture cannot be decoded or differs in size.
    """
    packed = Packed(arrays, part)
    digest = hashlib.sha256()
    for piece in (packed.header, packed.data, packed.offsets):
        digest.update(piece.tobytes())
    folder = cache_dir() / "packed" / digest.hexdigest()[:24]
    if not folder.exists():
        with new_folder(folder) as work:
            _decode(packed, work / "images.npy")
    return np.load(folder / "images.npy", mmap_mode="r")


def _decode(packed: Packed, target: Path) -> None:
    out: np.memmap | None = None
    for i in track(range(len(packed)), f"decoding {packed.part} (once)", transient=True):
        try:
            picture = decode_image(packed.read(i), ImageReadMode.RGB).numpy()
        except RuntimeError as error:
            raise ValueError(f"{packed.name(i)} cannot be decoded ({error}); repair it, or let another stand in for it with "
                             "data.size=PIXELS") from error
        if out is None:
            out = np.lib.format.open_memmap(target, "w+", np.uint8, (len(packed), *picture.shape))
        if picture.shape != out.shape[1:]:
            raise ValueError(f"{packed.name(i)} is {picture.shape}, the first is {out.shape[1:]}; sizes must be equal, "
                             "or brought to one with data.size=PIXELS")
        out[i] = picture
    if out is None:
        raise ValueError(f"{packed.part}_bytes holds no pictures")
    out.flush()
