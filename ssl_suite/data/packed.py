"""Packed JPEG: many encoded pictures end to end in one array, decoded once into a memory-mapped cache.

Keys of a part: ``train_bytes`` uint8, ``train_offsets`` (N+1,), and optionally ``header`` uint8, the leading bytes that
all pictures share and that are stored once.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from rich.progress import track
from torchvision.io import ImageReadMode, decode_image

from ssl_suite.data.cache import cache_dir, new_folder


def packed_parts(arrays: Mapping[str, np.ndarray]) -> tuple[str, ...]:
    """Names of the parts stored as packed pictures."""
    return tuple(
        key.removesuffix("_bytes")
        for key in arrays
        if key.endswith("_bytes") and f"{key.removesuffix('bytes')}offsets" in arrays
    )


def unpack(arrays: Mapping[str, np.ndarray], part: str) -> np.ndarray:
    """Pictures of a part, memory-mapped uint8 (N, C, H, W); decoded at the first call, later read from the cache.

    The cache is keyed by the content, so a changed file is decoded anew.

    Raises:
        ValueError: a picture cannot be decoded or differs in size.
    """
    header = arrays.get("header", np.empty(0, np.uint8))
    data, offsets = arrays[f"{part}_bytes"], np.asarray(arrays[f"{part}_offsets"], dtype=np.int64)
    digest = hashlib.sha256()
    for piece in (header, data, offsets):
        digest.update(piece.tobytes())
    folder = cache_dir() / "packed" / digest.hexdigest()[:24]
    if not folder.exists():
        with new_folder(folder) as work:
            _decode(header, data, offsets, part, work / "images.npy")
    return np.load(folder / "images.npy", mmap_mode="r")


def _decode(header: np.ndarray, data: np.ndarray, offsets: np.ndarray, part: str, target: Path) -> None:
    out: np.memmap | None = None
    for i in track(range(len(offsets) - 1), f"decoding {part} (once)", transient=True):
        encoded = torch.from_numpy(np.concatenate([header, data[offsets[i] : offsets[i + 1]]]))
        try:
            picture = decode_image(encoded, ImageReadMode.RGB).numpy()
        except RuntimeError as error:
            raise ValueError(f"picture {i} of {part}_bytes cannot be decoded ({error})") from error
        if out is None:
            out = np.lib.format.open_memmap(target, "w+", np.uint8, (len(offsets) - 1, *picture.shape))
        if picture.shape != out.shape[1:]:
            raise ValueError(
                f"picture {i} of {part}_bytes is {picture.shape}, the first is {out.shape[1:]}; sizes must be equal"
            )
        out[i] = picture
    if out is None:
        raise ValueError(f"{part}_bytes holds no pictures")
    out.flush()
