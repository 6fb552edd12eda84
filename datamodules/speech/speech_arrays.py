"""Recordings in arrays."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np

from datamodules.base import SourceDataModule
from ssl_suite.data.arrays import ArrayFile, Where, divide_rows, find_keys, flat_key, labels_key
from ssl_suite.data.audio import Resampled, resampled_lengths, speech_sources
from ssl_suite.data.ragged import Pieces, Rows
from ssl_suite.data.sources import Source
from ssl_suite.data.text import Units


class SpeechArraysDataModule(SourceDataModule):
    """Waveforms end to end with ``offsets`` (N+1,), or (N, T) with or without ``lengths``; int16, or float in [-1, 1].

    Other keys: ``labels`` or ``texts``, ``rate`` or ``rates`` (N,), and any column of N values that tells the parts
    apart.

    Args:
        path: ``.npz`` file or folder of ``.npy`` files.
        rate: samples per second wanted; None keeps the data's own. Data that do not say theirs are taken to have this
            one.
        target: ``class`` or ``text``; None takes classes where there are labels, else texts, else nothing.
        y: key of the labels or texts; None guesses.
        units: symbols of texts: ``chars``, or ``phones`` separated by spaces.
        test_where: test rows, key to values: ``{indices: [0, 1, 2, 3, 4]}``, ``{speakers: [george]}``; ``end`` for
            the last; None follows ``split`` where the data hold it.
        test_fraction: share held out, stratified, where there is neither.
        common: see `SourceDataModule`.

    Raises:
        FileNotFoundError: the path does not exist.
        ValueError: no key fits, or the rate is not known.
    """

    modality = "speech"

    def __init__(self, path: str | Path, *, rate: int | None = None, target: Literal["class", "text"] | None = None,
                 y: str | None = None, units: Units = "chars", test_where: Where = None,
                 test_fraction: float = 0.2, **common: Any) -> None:
        super().__init__(**common)
        self.path, self.wanted, self.target, self.y, self.units = path, rate, target, y, units
        self.test_where, self.test_fraction = test_where, test_fraction
        self.names: tuple[str, ...] = ()
        self.symbols: tuple[str, ...] = ()
        self.hertz = 0

    def class_names(self) -> tuple[str, ...]:
        return self.names

    def vocabulary(self) -> tuple[str, ...]:
        return self.symbols

    def rate(self) -> int:
        return self.hertz

    def sources(self) -> dict[str, Source]:
        arrays = ArrayFile(self.path)
        flat = flat_key(arrays)
        read: Pieces | Rows
        if flat is not None:
            offsets = np.asarray(arrays["offsets"], dtype=np.int64)
            read, lengths = Pieces(arrays[flat], offsets), np.diff(offsets)
        else:
            flat = find_keys(arrays, where=str(self.path)).get("all", ("", None))[0] or "audio"
            x = arrays.get(flat, np.empty(0))
            lengths = np.asarray(arrays.get("lengths", np.full(len(x), x.shape[-1])), dtype=np.int64)
            read = Rows(x, lengths)
        if flat not in arrays or arrays[flat].ndim != (1 if isinstance(read, Pieces) else 2):
            raise ValueError(
                f"{self.path} holds no waveforms (N, T), nor end to end with 'offsets'; it has {', '.join(arrays)}"
            )
        rates = self._rates(arrays, len(lengths))
        self.hertz = self.wanted or int(rates[0])
        labels, texts = self._labels(arrays, len(lengths))
        y = None if labels is None else np.unique(labels, return_inverse=True)[1]
        rows = self.rows = divide_rows(arrays, len(lengths), y, self.test_where, self.test_fraction, self.seed)
        sources, self.names, self.symbols = speech_sources(
            Resampled(read, rates, self.hertz), resampled_lengths(lengths, rates, self.hertz), rows, labels, texts,
            self.units, arrays.get("class_names"))
        return dict(sources)

    def _rates(self, arrays: Mapping[str, np.ndarray], n: int) -> np.ndarray:
        """The stored rate of every waveform, (N,)."""
        stored = arrays.get("rate", arrays.get("rates", self.wanted))
        if stored is None:
            raise ValueError(f"{self.path} has no 'rate'; say how many samples a second has with data.rate=...")
        rates = np.broadcast_to(np.asarray(stored, dtype=np.int64), (n,))
        if self.wanted is None and len(np.unique(rates)) > 1:
            raise ValueError(
                f"{self.path} has recordings of several rates ({np.unique(rates)}); choose one with data.rate=..."
            )
        return rates

    def _labels(self, arrays: Mapping[str, np.ndarray], n: int) -> tuple[np.ndarray | None, np.ndarray | None]:
        """Classes or texts, whichever are wanted, the other being None."""
        if self.target != "text":
            key = labels_key(arrays, self.y, "all", n, str(self.path))
            if key is not None:
                return arrays[key], None
        key = self.y or "texts"
        if key in arrays and self.target != "class":
            return None, arrays[key].astype(str)
        if self.target is not None:
            raise ValueError(
                f"{self.path} has no {self.target} labels under data.y={self.y}; it has {', '.join(arrays)}"
            )
        return None, None
