"""Recordings in folders, or listed in a manifest."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from datamodules.base import SourceDataModule
from ssl_suite.data.arrays import Where, divide_rows, existing
from ssl_suite.data.audio import AUDIO, AudioFiles, Read, Resampled, measure, resampled_lengths, speech_sources
from ssl_suite.data.files import Columns, read_manifest, scan
from ssl_suite.data.sources import Source
from ssl_suite.data.text import Units


class SpeechFolderDataModule(SourceDataModule):
    """WAV, FLAC, OGG or MP3 files in ``CLASS/``, in ``train/CLASS/`` and ``test/CLASS/``, in one folder, or in a list.

    A list is a ``.tsv`` file with a head line or a ``.jsonl`` file: ``path`` (relative to the list), ``text`` or
    ``label``, and optionally ``speaker`` and ``split`` (train, val, test).

    Args:
        path: the folder or the list.
        rate: samples per second; recordings of another rate are resampled.
        units: symbols of texts: ``chars``, or ``phones`` separated by spaces.
        test_where: test rows, column (in the plural) to values, as ``{speakers: [s01, s02]}``, or ``end`` for the last; None
            follows ``split``.
        test_fraction: share held out where there is neither.
        max_bad: unreadable files to leave out with a warning.
        common: see `SourceDataModule`.

    Raises:
        FileNotFoundError: the path or a listed file does not exist.
        ImportError: soundfile is missing.
        ValueError: the list is damaged, or too many files cannot be read.
    """

    modality = "speech"

    def __init__(self, path: str | Path, *, rate: int = 16000, units: Units = "chars",
                 test_where: Where = None, test_fraction: float = 0.2, max_bad: int = 10,
                 **common: Any) -> None:
        super().__init__(**common)
        if rate < 1:
            raise ValueError(f"data.rate={rate} must be a positive number of samples per second")
        self.path, self.hertz, self.units = path, rate, units
        self.test_where, self.test_fraction, self.max_bad = test_where, test_fraction, max_bad
        self.names: tuple[str, ...] = ()
        self.symbols: tuple[str, ...] = ()

    def class_names(self) -> tuple[str, ...]:
        return self.names

    def vocabulary(self) -> tuple[str, ...]:
        return self.symbols

    def rate(self) -> int:
        return self.hertz

    def recordings(self) -> tuple[Read, np.ndarray, np.ndarray, Columns]:
        """Reader of all recordings, their lengths in samples and their rates, (N,), and what is known of each."""
        path = existing(self.path)
        files, columns = scan(path, AUDIO) if path.is_dir() else read_manifest(path)
        good, lengths, rates = measure(files, self.max_bad)
        return AudioFiles([files[i] for i in good]), lengths, rates, {key: values[good] for key, values in columns.items()}

    def sources(self) -> dict[str, Source]:
        read, lengths, rates, columns = self.recordings()
        labels, texts = columns.get("labels"), columns.get("texts")
        y = None if labels is None else np.unique(labels, return_inverse=True)[1]
        rows = self.rows = divide_rows(columns, len(lengths), y, self.test_where, self.test_fraction, self.seed)
        sources, self.names, self.symbols = speech_sources(Resampled(read, rates, self.hertz),
                                                           resampled_lengths(lengths, rates, self.hertz), rows, labels, texts,
                                                           self.units)
        return dict(sources)
