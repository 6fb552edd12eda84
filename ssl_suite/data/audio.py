"""Reading recordings: sample files, resampling, and the parts of a speech set."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ssl_suite.config import require
from ssl_suite.data.arrays import class_numbers
from ssl_suite.data.ragged import Chosen, RaggedSource
from ssl_suite.data.text import Units, build_vocabulary, encode

Read = Callable[[int], np.ndarray]
AUDIO = (".wav", ".flac", ".ogg", ".opus", ".mp3", ".aiff")


class Resampled:
    """Brings another reader's waveforms to one rate.

    Args:
        read: gives waveform i, (T_i,).
        rates: rate of every waveform in samples per second, (N,).
        rate: the rate wanted.
    """

    def __init__(self, read: Read, rates: np.ndarray, rate: int) -> None:
        self.read, self.rates, self.rate = read, rates, rate
        self._kernels: dict[int, Any] = {}

    def __call__(self, i: int) -> np.ndarray:
        old = int(self.rates[i])
        if old == self.rate:
            return self.read(i)
        if old not in self._kernels:
            self._kernels[old] = require("torchaudio.transforms", extra="speech").Resample(old, self.rate)
        x = self.read(i)
        out = self._kernels[old](torch.from_numpy(x.astype(np.float32))).numpy()
        return np.clip(np.round(out), -32768, 32767).astype(np.int16) if x.dtype == np.int16 else out


def resampled_lengths(lengths: np.ndarray, rates: np.ndarray, rate: int) -> np.ndarray:
    """Samples that `Resampled` gives for waveforms of these lengths."""
    return -(-lengths.astype(np.int64) * rate // rates.astype(np.int64))


class AudioFiles:
    """Reads file i as int16 (T_i,), the mean of its channels."""

    def __init__(self, files: Sequence[Path]) -> None:
        self.files = list(files)

    def __call__(self, i: int) -> np.ndarray:
        return decode_audio(str(self.files[i]))


class EncodedAudio:
    """Reads recording i as int16 (T_i,) out of its file's content."""

    def __init__(self, content: Callable[[int], bytes]) -> None:
        self.content = content

    def __call__(self, i: int) -> np.ndarray:
        return decode_audio(io.BytesIO(self.content(i)))


def decode_audio(file: str | io.BytesIO) -> np.ndarray:
    """A recording as int16 (T,), the mean of its channels."""
    samples, _ = require("soundfile", extra="speech").read(file, dtype="int16", always_2d=True)
    return samples[:, 0] if samples.shape[1] == 1 else samples.mean(axis=1).round().astype(np.int16)


def measure(files: Sequence[Path], max_bad: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Read the heads of files.

    Args:
        files: recordings.
        max_bad: unreadable or empty files to put up with; they are named in a warning and left out.

    Returns:
        Places of the readable files in ``files``; their lengths in samples; their rates.

    Raises:
        ImportError: soundfile is missing.
        FileNotFoundError: a file does not exist.
        ValueError: too many files cannot be read.
    """
    soundfile = require("soundfile", extra="speech")
    good, bad = [], []
    for i, file in enumerate(files):
        if not file.exists():
            raise FileNotFoundError(f"{file} does not exist; correct the list of recordings")
        try:
            info = soundfile.info(str(file))
        except (soundfile.LibsndfileError, OSError, RuntimeError):
            info = None
        if info is None or info.frames < 1:
            bad.append(str(file))
        else:
            good.append((i, info.frames, info.samplerate))
    if len(bad) > max_bad or not good:
        raise ValueError(
            f"{len(bad)} of {len(files)} recordings cannot be read, among them {', '.join(bad[:3])}; remove them, "
            f"or raise data.max_bad={max_bad}"
        )
    if bad:
        warnings.warn(f"{len(bad)} recordings cannot be read and are left out: {', '.join(bad[:5])}", stacklevel=2)
    places, lengths, rates = np.array(good, dtype=np.int64).T
    return places, lengths, rates


def speech_sources(read: Read, lengths: np.ndarray, rows: Mapping[str, np.ndarray], labels: np.ndarray | None,
                   texts: np.ndarray | None, units: Units, names: np.ndarray | None = None
                   ) -> tuple[dict[str, RaggedSource], tuple[str, ...], tuple[str, ...]]:
    """Sources of the parts of a speech set.

    Args:
        read: gives waveform i.
        lengths: samples of each, (N,).
        rows: which of them each part takes.
        labels: a class for each, (N,), or None.
        texts: a transcript for each, (N,), or None; the vocabulary is that of the training part.
        units: symbols of the transcripts.
        names: names of the classes by label number.

    Returns:
        Sources by part, names of the classes, vocabulary.
    """
    numbers, classes = class_numbers({"all": labels}, names)
    y = numbers["all"]
    vocabulary = () if texts is None else build_vocabulary(texts[rows["train"]], units)
    sources = {part: RaggedSource(Chosen(read, r), lengths[r], None if y is None else y[r],
                                  None if texts is None else encode(texts[r], vocabulary, units)) for part, r in
                                  rows.items()}
    return sources, classes, vocabulary
