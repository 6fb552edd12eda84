"""Pictures with masks: held in arrays, read from files, and with the guesses of an earlier model beside them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as tv

from ssl_suite.batch import Batch
from ssl_suite.data.files import decode_picture
from ssl_suite.data.sources import Source
from ssl_suite.functional.segmentation import VOID

MASK_NAMES = ("masks", "mask", "labels", "targets", "y")


class MaskArrays:
    """Pictures and masks in arrays.

    Args:
        x: pictures, uint8 (N, C, H, W).
        masks: the class of each pixel, uint8 (N, H, W), `VOID` where none counts.

    Raises:
        ValueError: the arrays do not fit each other.
    """

    targets: np.ndarray | None = None
    lengths: np.ndarray | None = None

    def __init__(self, x: np.ndarray, masks: np.ndarray) -> None:
        if masks.shape != (len(x), *x.shape[2:]):
            raise ValueError(f"pictures {x.shape} need masks {(len(x), *x.shape[2:])}, got {masks.shape}")
        self.x, self.masks = x, masks

    def __len__(self) -> int:
        return len(self.x)

    def fetch(self, indices: np.ndarray) -> Batch:
        return {"x": torch.from_numpy(np.ascontiguousarray(self.x[indices])), "y": torch.from_numpy(self.masks[indices])}


class MaskFiles:
    """Pictures and masks of any size, decoded, brought to a square and renumbered when fetched.

    Args:
        files: a picture and its mask each; a mask is an image of one channel or with a palette, whose numbers count.
        size: side in pixels; the shorter side is brought to it, the middle kept.
        table: class of every number that a mask may hold, (256,); see `class_table`.
    """

    targets: np.ndarray | None = None
    lengths: np.ndarray | None = None

    def __init__(self, files: Sequence[tuple[Path, Path]], size: int, table: np.ndarray) -> None:
        self.files, self.size, self.table = list(files), size, table

    def __len__(self) -> int:
        return len(self.files)

    def fetch(self, indices: np.ndarray) -> Batch:
        """Pictures as uint8 (B, 3, size, size) and masks (B, size, size).

        Raises:
            ValueError: a file cannot be read.
        """
        pairs = [self._pair(*self.files[i]) for i in indices]
        return {"x": torch.stack([x for x, _ in pairs]), "y": torch.stack([y for _, y in pairs])}

    def _pair(self, picture: Path, mask: Path) -> tuple[Tensor, Tensor]:
        try:
            return decode_picture(picture, self.size), decode_mask(mask, self.size, self.table)
        except (RuntimeError, OSError, UnidentifiedImageError) as error:
            raise ValueError(f"{picture} or its mask {mask} cannot be read ({error}); repair or remove both") from error


class WithPseudoMasks:
    """A source that also gives ``pseudo``: what an earlier model guessed of the pictures.

    Args:
        source: pictures with masks.
        path: ``.npz`` file of ``index`` (M,), the places of pictures in the source, and ``target`` (M, H, W) uint8, and of
            ``kept`` (M,) bool where only some are to be learnt from. Other arrays (``confidence``) are not looked at.
        num_classes: every number in ``target`` lies below, or is `VOID`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file lacks an array, or one does not fit the source.
    """

    def __init__(self, source: Source, path: str | Path, num_classes: int) -> None:
        path = Path(path).expanduser()
        if not path.is_file():
            raise FileNotFoundError(f"data.pseudo_masks={path} does not exist; make it, or leave data.pseudo_masks out")
        with np.load(path, allow_pickle=False) as file:
            if not {"index", "target"} <= set(file.files):
                raise ValueError(f"data.pseudo_masks={path} must hold the arrays index and target, not {', '.join(file.files)}")
            index, target = file["index"], file["target"]
            if "kept" in file:
                index, target = index[file["kept"]], target[file["kept"]]
        size = tuple(source.fetch(np.zeros(1, dtype=np.int64))["y"].shape[1:])
        if target.shape != (len(index), *size) or (len(index) and not 0 <= index.min() <= index.max() < len(source)):
            raise ValueError(f"data.pseudo_masks={path}: masks {target.shape} for {len(index)} pictures do not fit the "
                             f"{len(source)} pictures of {size[0]}x{size[1]} pixels; make them again with the data as they are now")
        strange = np.setdiff1d(np.unique(target), [*range(num_classes), VOID])
        if len(strange):
            raise ValueError(f"data.pseudo_masks={path} holds {strange[:5].tolist()}, which are none of {num_classes} classes")
        self.source, self.targets, self.lengths = source, source.targets, source.lengths
        self.row = np.full(len(source), len(index))
        self.row[index] = np.arange(len(index))
        self.target = np.concatenate([target.astype(np.uint8), np.full((1, *size), VOID, np.uint8)])  # the last: none

    def __len__(self) -> int:
        return len(self.source)

    def fetch(self, indices: np.ndarray) -> Batch:
        return {**self.source.fetch(indices), "pseudo": torch.from_numpy(self.target[self.row[indices]])}


def decode_mask(file: Path, size: int, table: np.ndarray) -> Tensor:
    """A mask file as uint8 (size, size): nearest pixels, the shorter side brought to ``size``, the middle kept.

    Raises:
        ValueError: the file has colours instead of numbers, or holds a number that is no class.
    """
    with Image.open(file) as image:
        numbers = np.asarray(image)
    if numbers.ndim != 2:
        raise ValueError(f"{file} has {numbers.shape[-1]} channels; a mask is an image of one channel whose numbers are classes")
    mask = torch.from_numpy(renumbered(numbers, table, str(file)))[None]
    return tv.center_crop(tv.resize(mask, [size], InterpolationMode.NEAREST_EXACT), [size, size])[0]


def class_table(names: Sequence[str], ignore: Sequence[int]) -> tuple[np.ndarray, tuple[str, ...]]:
    """What each number in a mask becomes, and the names of the classes that are left.

    Args:
        names: names by number.
        ignore: numbers that do not count.

    Returns:
        Table (256,) int64: a class 0..K-1, `VOID`, or -1 where a number has no meaning; and K names.

    Raises:
        ValueError: no class is left, or there are more than a mask can tell apart.
    """
    kept = [number for number in range(len(names)) if number not in ignore]
    if not 1 <= len(kept) < VOID:
        raise ValueError(f"data.ignore={list(ignore)} leaves {len(kept)} of {len(names)} classes; masks need 1 to {VOID - 1}")
    table = np.full(256, -1)
    table[kept] = np.arange(len(kept))
    table[[VOID, *ignore]] = VOID
    return table, tuple(str(names[number]) for number in kept)


def renumbered(masks: np.ndarray, table: np.ndarray, where: str) -> np.ndarray:
    """Masks with the numbers that `class_table` gives, uint8.

    Raises:
        ValueError: a number has no meaning.
    """
    if masks.dtype == np.bool_:
        masks = masks.astype(np.uint8)
    low, high = (int(masks.min()), int(masks.max())) if masks.size else (0, 0)
    if masks.dtype.kind not in "iu" or low < 0 or high > 255:
        raise ValueError(f"{where} holds {masks.dtype} from {low} to {high}; a mask holds whole numbers from 0 to 255")
    new = table[masks]
    if (new < 0).any():
        raise ValueError(f"{where} holds {np.unique(masks[new < 0])[:5].tolist()}, which are no classes; name what does not count "
                         "in data.ignore, or name all classes")
    return new.astype(np.uint8)


def mask_key(arrays: Mapping[str, np.ndarray], x: str, y: str | None, where: str) -> str:
    """Key of the masks that belong to pictures, (N, H, W): the word for pictures in their key replaced by one for masks.

    Args:
        arrays: what the data hold.
        x: key of the pictures, as ``train_images``.
        y: key of the masks, with or without its part; None guesses.
        where: file the data come from, for the message.

    Raises:
        ValueError: there is none; the message lists the keys.
    """
    part = x.rsplit("_", 1)[0] + "_" if "_" in x else ""
    for name in MASK_NAMES if y is None else (y.removeprefix("train_"),):
        key = f"{part}{name}"
        if key in arrays and arrays[key].ndim == 3 and len(arrays[key]) == len(arrays[x]):
            return key
    listing = ", ".join(f"{key} {tuple(arrays[key].shape)}" for key in arrays)
    raise ValueError(f"{where} has no masks (N, H, W) for {x}; it holds {listing}; name them with data.y=KEY")


def resized(x: np.ndarray, masks: np.ndarray, size: Sequence[int], sizes: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """Pictures (N, C, H, W) and masks (N, H, W) brought to a size, pixels averaged and classes by the nearest.

    Args:
        x: pictures, uint8.
        masks: masks, uint8.
        size: rows and columns.
        sizes: true rows and columns of each picture, (N, 2); what lies outside them is padding and is cut off. None where there
            is none.
    """
    if sizes is None and tuple(x.shape[2:]) == tuple(size):
        return x, masks
    extents = np.broadcast_to(x.shape[2:], (len(x), 2)) if sizes is None else sizes
    new_x, new_y = np.empty((*x.shape[:2], *size), np.uint8), np.empty((len(x), *size), np.uint8)
    for i, (h, w) in enumerate(extents.astype(int).tolist()):
        picture, mask = torch.from_numpy(x[i, :, :h, :w].copy()), torch.from_numpy(masks[i, None, :h, :w].copy())
        new_x[i] = tv.resize(picture, list(size), antialias=True).numpy()
        new_y[i] = tv.resize(mask, list(size), InterpolationMode.NEAREST_EXACT).numpy()[0]
    return new_x, new_y
