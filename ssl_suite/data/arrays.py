"""Arrays on disk: ``.npz`` archives, ``.npy`` files and folders of them, and which of their keys hold what."""

from __future__ import annotations

import json
import warnings
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from ssl_suite.data import splits

Arrays = dict[str, np.ndarray]
Where = Mapping[str, Sequence[object]] | Literal["end"] | None
"""Which rows are the test: key to values, the last ones, or not said; see `divide_rows`."""
Keys = dict[str, tuple[str, str | None]]
"""Part (``train``, ``test``, ``val`` or ``all``) to the keys of its samples and of its labels."""

X_NAMES = ("images", "x", "X", "audio", "waveforms", "series", "data")
Y_NAMES = ("labels", "y", "Y", "targets", "label", "target")
PARTS = {"train": ("train", "training"), "test": ("test", "testing"), "val": ("val", "valid", "validation", "dev")}


class ArrayFile(Mapping[str, np.ndarray]):
    """The arrays of an ``.npz`` archive (read at first use) or of a folder of ``.npy`` files (memory-mapped).

    A folder's ``classes.json`` (a list of names) appears as ``class_names``, the numbers of its ``meta.json`` as
    arrays.

    Args:
        path: an ``.npz`` file, a folder, or one ``.npy`` file, whose folder is then read.

    Raises:
        FileNotFoundError: nothing stands at the path, or the folder holds no arrays.
        ValueError: the file is damaged, is no array file, or needs pickle.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = existing(path)
        self._cache: Arrays = {}
        if self.path.suffix == ".npz":
            try:
                self._archive = np.load(self.path, allow_pickle=False)
            except (zipfile.BadZipFile, ValueError, OSError) as error:
                raise ValueError(f"data.path={self.path} is no readable .npz archive ({error}); "
                                 "write it with numpy.savez") from error
            self._keys = list(self._archive.files)
        elif self.path.is_dir() or self.path.suffix == ".npy":
            self._open_folder(self.path if self.path.is_dir() else self.path.parent)
        else:
            raise ValueError(f"data.path={self.path} must be an .npz file, an .npy file or a folder of .npy files")

    def _open_folder(self, folder: Path) -> None:
        self._archive = None
        for file in sorted(folder.glob("*.npy")):
            try:
                self._cache[file.stem] = np.load(file, mmap_mode="r", allow_pickle=False)
            except (ValueError, OSError) as error:
                raise ValueError(f"{file} is no readable array ({error}); write it with numpy.save") from error
        if not self._cache:
            raise FileNotFoundError(f"data.path={folder} holds no .npy files; "
                                    "scripts/prepare_arrays.py makes them from a folder")
        if (folder / "classes.json").exists():
            self._cache["class_names"] = np.array(json.loads((folder / "classes.json").read_text()))
        if (folder / "meta.json").exists():
            meta = json.loads((folder / "meta.json").read_text())
            self._cache |= {k: np.asarray(v) for k, v in meta.items() if isinstance(v, int | float)}
        self._keys = list(self._cache)

    def __getitem__(self, key: str) -> np.ndarray:
        if key not in self._cache:
            if key not in self._keys:
                raise KeyError(key)
            try:
                self._cache[key] = self._archive[key]
            except (zipfile.BadZipFile, ValueError, OSError, EOFError) as error:
                raise ValueError(f"{key} in {self.path} cannot be read ({error})") from error
        return self._cache[key]

    def __contains__(self, key: object) -> bool:
        return key in self._keys

    def __iter__(self) -> Iterator[str]:
        return iter(self._keys)

    def __len__(self) -> int:
        return len(self._keys)


def existing(path: str | Path) -> Path:
    """The path with ``~`` resolved.

    Raises:
        FileNotFoundError: nothing stands there.
    """
    path = Path(path).expanduser()
    if not path.exists():
        raise FileNotFoundError(f"data.path={path} does not exist; set data.path to the data")
    return path


def find_keys(arrays: Mapping[str, np.ndarray], x: str | None = None, y: str | None = None,
              where: str = "the data") -> Keys:
    """Which keys hold samples and labels, part by part.

    Tries ``train_images`` and ``images_train`` kinds of keys first, then undivided ones (``images``). A ``val`` part
    stands in for a missing ``test`` part; a training part alone counts as undivided. Guessed labels of more than one
    axis (maps of labels) are left out.

    Args:
        arrays: what the data hold.
        x: name of the samples, with or without its part (``images`` or ``train_images``); None guesses.
        y: name of the labels, likewise.
        where: file the data come from, for messages.

    Raises:
        ValueError: nothing fits; the message lists the keys.
    """
    for name in X_NAMES if x is None else (_stem(x),):
        found = {part: key for part in PARTS if (key := _key(arrays, name, part)) is not None}
        if "train" not in found:
            found = {"all": name} if name in arrays else {"all": x} if x is not None and x in arrays else {}
        if found:
            keys: Keys = {part: (key, labels_key(arrays, y, part, len(arrays[key]), where))
                          for part, key in found.items()}
            if "val" in keys and "test" not in keys:
                keys["test"] = keys.pop("val")
            return keys if len(keys) > 1 else {"all": next(iter(keys.values()))}
    listing = ", ".join(f"{key} {tuple(arrays[key].shape)}" for key in arrays)
    wanted = f"no key {x}" if x is not None else "no key with a usual name for samples"
    raise ValueError(f"{where} has {wanted}; it holds {listing}; "
                     "name the samples with data.x=KEY and the labels with data.y=KEY")


def _stem(name: str) -> str:
    for word in PARTS["train"]:
        name = name.removeprefix(f"{word}_").removesuffix(f"_{word}")
    return name


def _key(arrays: Mapping[str, np.ndarray], name: str, part: str) -> str | None:
    for word in PARTS[part]:
        for key in (f"{word}_{name}", f"{name}_{word}"):
            if key in arrays:
                return key
    return None


def labels_key(arrays: Mapping[str, np.ndarray], y: str | None, part: str, n: int, where: str) -> str | None:
    """Key of the labels of a part of ``n`` samples; see `find_keys`."""
    for name in Y_NAMES if y is None else (_stem(y),):
        key = (name if name in arrays else None) if part == "all" else _key(arrays, name, part)
        if key is None:
            continue
        if arrays[key].shape == (n,):
            return key
        if y is not None:
            raise ValueError(f"{where}: data.y={y} has shape {arrays[key].shape}, "
                             f"but one label for each of {n} samples is needed")
    if y is not None:
        raise ValueError(f"{where} has no labels data.y={y} for its part '{part}'; it holds {', '.join(arrays)}")
    return None


def flat_key(arrays: Mapping[str, np.ndarray]) -> str | None:
    """Key of samples stored end to end: the one array as long as the last of ``offsets`` says; None without one."""
    if "offsets" not in arrays:
        return None
    end = int(arrays["offsets"][-1])
    return next((key for key in arrays if key != "offsets" and arrays[key].ndim and len(arrays[key]) == end), None)


def class_numbers(labels: Mapping[str, np.ndarray | None], names: np.ndarray | None = None
                  ) -> tuple[dict[str, np.ndarray | None], tuple[str, ...]]:
    """Labels of any kind as numbers 0..K-1, the same for all parts.

    Args:
        labels: labels of each part, (N,), or None.
        names: names of the classes by label number; used where every label is a valid place in it.

    Returns:
        Numbers of each part, and the names of the classes.

    Raises:
        ValueError: a label is no whole number.
    """
    given = {part: np.asarray(old) for part, old in labels.items() if old is not None}
    if not given:
        return dict(labels), ()
    for part, old in given.items():
        if old.dtype.kind == "f" and (wrong := old[~np.isfinite(old) | (old != old.round())]).size:
            raise ValueError(f"the {part} labels hold {wrong[0]}, which is no class; leave such samples out, or number the classes")
    values = np.unique(np.concatenate(list(given.values())))
    numbers = {part: None if old is None else np.searchsorted(values, old) for part, old in labels.items()}
    warn_of_labels(given, values)
    by_number = names is not None and values.dtype.kind in "iu" and values[0] >= 0 and values[-1] < len(names)
    return numbers, tuple(str(names[v]) if by_number and names is not None else str(v) for v in values)


def warn_of_labels(given: Mapping[str, np.ndarray], values: np.ndarray) -> None:
    """Warn of a -1 beside a 0, which may stand for "no label", and of classes that training will never see."""
    if values.dtype.kind in "if" and {-1, 0, 1} < set(values.tolist()):
        warnings.warn("label -1 is a class like the others here; where it stands for no label, list the labelled samples in "
                      "data.split_file", stacklevel=2)
    if unseen := sorted(set(values.tolist()) - set(given.get("train", values).tolist())):
        warnings.warn(f"no training sample has label {', '.join(map(str, unseen[:5]))}: samples of that class always count as "
                      "mistakes", stacklevel=2)


def divide_rows(arrays: Mapping[str, np.ndarray], n: int, targets: np.ndarray | None,
                where: Where, fraction: float, seed: int) -> dict[str, np.ndarray]:
    """Rows of the parts ``train`` and ``test`` (and ``val`` where ``split`` tells them apart) of undivided data.

    Args:
        arrays: the data; may hold ``split``, for each row the word train, val (or dev) or test.
        n: number of rows.
        targets: class numbers, (n,), or None.
        where: key to the values that make a row a test row, as ``{speakers: [george]}``; names are looked up in
            ``speaker_names`` where the key holds numbers. ``end`` takes the last rows, for data in order of time. None
            follows ``split`` if there is one, else holds out at random.
        fraction: share of a test part that is drawn at random or taken from the end.
        seed: seed of the random choice.

    Raises:
        ValueError: a key or a word is unknown or does not fit, or one of the parts is empty.
    """
    if where is None and "split" in arrays and arrays["split"].shape == (n,):
        return _split_rows(arrays["split"].astype(str))
    if where is None:
        train, held = splits.hold_out(targets, n, fraction, seed, "data.test_fraction")
        return {"train": train, "test": held}
    if isinstance(where, str):
        if where != "end" or not 0.0 < fraction < 1.0:
            raise ValueError(f"data.test_where={where} must be end, the last data.test_fraction={fraction} in (0, 1), or keys with "
                             "values")
        return dict(zip(("train", "test"), splits.chronological(n, 1.0 - fraction), strict=True))
    test = np.ones(n, dtype=bool)
    for key, values in where.items():
        if key not in arrays or arrays[key].shape != (n,):
            raise ValueError(f"data.test_where names '{key}', which is no array of {n} values; "
                             f"there are {', '.join(arrays)}")
        rows, names = arrays[key], f"{key.removesuffix('s')}_names"
        if names in arrays and rows.dtype.kind in "iu" and any(isinstance(v, str) for v in values):
            rows = arrays[names][rows]
        test &= np.isin(rows.astype(str), [str(v) for v in values])
    if test.all() or not test.any():
        raise ValueError(f"data.test_where={dict(where)} selects {int(test.sum())} of {n} samples; "
                         "both parts need some")
    return {"train": np.flatnonzero(~test), "test": np.flatnonzero(test)}


def _split_rows(words: np.ndarray) -> dict[str, np.ndarray]:
    strange = sorted(set(words.tolist()) - {word for spellings in PARTS.values() for word in spellings})
    if strange:
        raise ValueError(f"the column 'split' holds {', '.join(map(repr, strange[:5]))}; "
                         "known are train, val (or dev) and test")
    rows = {part: np.flatnonzero(np.isin(words, spellings)) for part, spellings in PARTS.items()}
    rows = {part: r for part, r in rows.items() if len(r)}
    if "val" in rows and "test" not in rows:
        rows["test"] = rows.pop("val")
    if not {"train", "test"} <= rows.keys():
        raise ValueError(f"the column 'split' knows only {', '.join(rows)}; both train and test (or val) need samples")
    return rows


def balanced_prefix(targets: np.ndarray | None, n: int, limit: int | None) -> np.ndarray:
    """The first samples of every class in equal numbers, ``limit`` in all, in order; without labels the first."""
    if limit is None or limit >= n:
        return np.arange(n)
    if limit < 1:
        raise ValueError(f"data.max_train and data.max_test must be at least 1, got {limit}")
    if targets is None:
        return np.arange(limit)
    rank = np.empty(n, dtype=np.int64)
    for c in np.unique(targets):
        members = np.flatnonzero(targets == c)
        rank[members] = np.arange(len(members))
    return np.sort(np.lexsort((np.arange(n), rank))[:limit])


def as_pictures(x: np.ndarray, where: str) -> np.ndarray:
    """Pictures in any customary layout as uint8 (N, C, H, W); a view of the input where nothing has to be computed.

    Takes (N, H, W), (N, H, W, C) and (N, C, H, W) with 1, 3 or 4 channels (the last axis is taken for channels first);
    of four channels the last (opacity) is dropped. Values: uint8 0..255, uint8 or bool 0..1, float 0..1 or 0..255.

    Raises:
        ValueError: another shape or range.
    """
    if x.ndim == 3:
        x = x[:, None]
    elif x.ndim == 4 and x.shape[-1] in (1, 3, 4):
        x = x.transpose(0, 3, 1, 2)
    if x.ndim != 4 or x.shape[1] not in (1, 3, 4):
        raise ValueError(f"{where} has shape {x.shape}; "
                         "pictures must be (N, H, W), (N, H, W, C) or (N, C, H, W) with C = 1, 3 or 4")
    x = x[:, :3]
    some = x[np.linspace(0, len(x) - 1, min(len(x), 512)).astype(np.int64)] if x.dtype == np.uint8 else x
    low, high = float(some.min()), float(some.max())
    if not (low >= 0 and high <= 255):
        raise ValueError(f"{where} holds values from {low} to {high}; pictures must lie in 0..1 or 0..255")
    if x.dtype == np.uint8 and high > 1:
        return x
    if x.dtype in (np.uint8, np.bool_):
        return x.astype(np.uint8) * np.uint8(255)
    return np.round(x * (255.0 if high <= 1 else 1.0)).astype(np.uint8)
