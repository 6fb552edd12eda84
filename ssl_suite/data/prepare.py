"""Folders of files turned into memory-mapped arrays, which load without decoding."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from rich.progress import track
from torchvision.io import ImageReadMode, decode_image

from ssl_suite.data.arrays import class_numbers, existing
from ssl_suite.data.audio import AUDIO, AudioFiles, Resampled, measure, resampled_lengths
from ssl_suite.data.cache import new_folder
from ssl_suite.data.files import PICTURES, Columns, decode_picture, read_manifest, scan
from ssl_suite.data.streamed import write_streamed


def prepare_images(folder: str | Path, out: str | Path, size: int, max_bad: int = 0) -> int:
    """Write pictures as arrays.

    Makes ``images.npy`` uint8 (N, 3, size, size), and ``labels.npy``, ``classes.json`` and ``split.npy`` where the
    folders tell.

    Args:
        folder: pictures as `ssl_suite.data.files.scan` takes them.
        out: folder to make; it appears when everything is written.
        size: the shorter side is brought to this many pixels and the middle kept.
        max_bad: unreadable files to leave out with a warning.

    Returns:
        Number of pictures.

    Raises:
        FileNotFoundError: no folder, or no pictures in it.
        FileExistsError: ``out`` exists.
        ValueError: too many files cannot be read.
    """
    files, columns = scan(folder, PICTURES)
    with new_folder(_free(out)) as work:
        images = np.lib.format.open_memmap(work / "all.npy", "w+", np.uint8, (len(files), 3, size, size))

        def take(file: Path, place: int) -> None:
            images[place] = decode_picture(file, size).numpy()

        good = readable(files, max_bad, take)
        images.flush()
        if len(good) < len(files):
            np.save(work / "images.npy", images[: len(good)])
            (work / "all.npy").unlink()
        else:
            (work / "all.npy").rename(work / "images.npy")
        _save_columns({key: values[good] for key, values in columns.items()}, work)
    return len(good)


def prepare_packed(folder: str | Path, out: str | Path, max_bad: int = 0) -> int:
    """Write the content of picture files, of any sizes and unchanged, end to end.

    Makes ``all_bytes.npy`` uint8 (bytes,), ``all_offsets.npy`` (N+1,), and the columns as `prepare_images` does. Every picture is
    decoded once to see that it can be.

    Args:
        folder: pictures as `ssl_suite.data.files.scan` takes them.
        out: folder to make; it appears when everything is written.
        max_bad: unreadable files to leave out with a warning.

    Returns:
        Number of pictures.

    Raises:
        FileNotFoundError: no folder, or no pictures in it.
        FileExistsError: ``out`` exists.
        ValueError: too many files cannot be read.
    """
    files, columns = scan(folder, PICTURES)
    with new_folder(_free(out)) as work:
        good = readable(files, max_bad, look)
        offsets = np.cumsum([0, *(files[i].stat().st_size for i in good)])
        data = np.lib.format.open_memmap(work / "all_bytes.npy", "w+", np.uint8, (int(offsets[-1]),))
        for place, i in enumerate(track(good, "packing pictures")):
            data[offsets[place] : offsets[place + 1]] = np.fromfile(files[i], np.uint8)
        data.flush()
        np.save(work / "all_offsets.npy", offsets)
        _save_columns({key: values[good] for key, values in columns.items()}, work)
    return len(good)


def prepare_streamed(path: str | Path, out: str | Path, max_bad: int = 0, chunk_bytes: int = 16_000_000) -> int:
    """Write pictures or recordings, the files' content unchanged, as a streamed set (see `ssl_suite.data.streamed`).

    They are put in random order, so that neighbours in a chunk have nothing to do with each other.

    Args:
        path: folder of pictures or of recordings, or a list of recordings.
        out: folder to make; it appears when everything is written.
        max_bad: unreadable files to leave out with a warning.
        chunk_bytes: bytes of a chunk, at most.

    Returns:
        Number of items.

    Raises:
        FileNotFoundError: no such path, or nothing in it.
        FileExistsError: ``out`` exists.
        ImportError: litdata, or soundfile for recordings, is missing.
        ValueError: too many files cannot be read.
    """
    path = existing(path)
    files, columns = scan(path, (*PICTURES, *AUDIO)) if path.is_dir() else read_manifest(path)
    kinds = {f.suffix.lower() in AUDIO for f in files}
    if len(kinds) > 1:
        raise ValueError(f"{path} holds pictures and recordings; make a set of each")
    with new_folder(_free(out)) as work:
        if kinds == {True}:
            good, lengths, rates = measure(files, max_bad)
            known = {"lengths": lengths, "rates": rates}
        else:
            good, known = np.array(readable(files, max_bad, look)), {}
        known = {key: values[good] for key, values in columns.items() if key != "paths"} | known  # measured, not claimed
        order = np.random.default_rng(0).permutation(len(good))
        contents = (files[i].read_bytes() for i in track(good[order], "writing chunks"))
        write_streamed(work, contents, {key: values[order] for key, values in known.items()}, chunk_bytes)
    return len(good)


def look(file: Path, place: int) -> None:
    """Decode a picture to see that it can be."""
    decode_image(str(file), ImageReadMode.RGB)


def readable(files: Sequence[Path], max_bad: int, take: Callable[[Path, int], None]) -> list[int]:
    """Places of the pictures that can be decoded; the others are named in a warning.

    Args:
        files: the pictures.
        max_bad: how many may be left out.
        take: decodes a file; gets its place among the good ones too.

    Raises:
        ValueError: more than ``max_bad`` cannot.
    """
    good: list[int] = []
    bad: list[str] = []
    for i in track(range(len(files)), "decoding pictures"):
        try:
            take(files[i], len(good))
            good.append(i)
        except (RuntimeError, OSError):
            bad.append(str(files[i]))
            if len(bad) > max_bad:
                raise ValueError(f"{len(bad)} pictures cannot be read, the last {bad[-1]}; remove them, "
                                 f"or put up with more than --max-bad {max_bad}") from None
    if bad:
        warnings.warn(f"{len(bad)} pictures cannot be read and are left out: {', '.join(bad[:5])}", stacklevel=2)
    return good


def prepare_audio(path: str | Path, out: str | Path, rate: int, max_bad: int = 0) -> int:
    """Write recordings as arrays.

    Makes ``audio.npy`` int16 (all samples end to end), ``offsets.npy`` (N+1,), ``meta.json``, and a file for every
    column.

    Args:
        path: folder of recordings, or a list (see `ssl_suite.data.files.read_manifest`).
        out: folder to make; it appears when everything is written.
        rate: samples per second; recordings of another rate are resampled.
        max_bad: unreadable files to leave out with a warning.

    Returns:
        Number of recordings.

    Raises:
        FileNotFoundError: no such path, or nothing in it.
        FileExistsError: ``out`` exists.
        ImportError: soundfile is missing.
        ValueError: too many files cannot be read.
    """
    path = existing(path)
    files, columns = scan(path, AUDIO) if path.is_dir() else read_manifest(path)
    good, lengths, rates = measure(files, max_bad)
    offsets = np.concatenate([[0], np.cumsum(resampled_lengths(lengths, rates, rate))])
    read = Resampled(AudioFiles([files[i] for i in good]), rates, rate)
    with new_folder(_free(out)) as work:
        audio = np.lib.format.open_memmap(work / "audio.npy", "w+", np.int16, (int(offsets[-1]),))
        for i in track(range(len(good)), "reading recordings"):
            audio[offsets[i] : offsets[i + 1]] = read(i)
        audio.flush()
        np.save(work / "offsets.npy", offsets)
        (work / "meta.json").write_text(json.dumps({"rate": rate}))
        _save_columns({key: values[good] for key, values in columns.items() if key != "paths"}, work)
    return len(good)


def _free(out: str | Path) -> Path:
    out = Path(out).expanduser()
    if out.exists():
        raise FileExistsError(f"{out} exists; remove it or choose another place")
    return out


def _save_columns(columns: Columns, folder: Path) -> None:
    """Labels as numbers with their names in ``classes.json``, everything else as it is."""
    for key, values in columns.items():
        if key == "labels":
            numbers, names = class_numbers({"all": values})
            values = np.asarray(numbers["all"])
            (folder / "classes.json").write_text(json.dumps(names))
        np.save(folder / f"{key}.npy", values)
