"""Transcripts as symbol numbers."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Sequence
from typing import Literal

import numpy as np

Units = Literal["chars", "phones"]


def split_text(text: str, units: Units) -> list[str]:
    """Symbols of a text: the characters of its lower-cased words with single spaces, or words taken as phones."""
    words = text.split()
    return words if units == "phones" else list(" ".join(words).lower())


def build_vocabulary(texts: Sequence[str], units: Units) -> tuple[str, ...]:
    """The sorted symbols of the texts, without a blank.

    Raises:
        ValueError: ``units`` is unknown, or the texts hold no symbol.
    """
    if units not in ("chars", "phones"):
        raise ValueError(f"data.units={units} must be 'chars' or 'phones'")
    symbols = tuple(sorted({symbol for text in texts for symbol in split_text(text, units)}))
    if not symbols:
        raise ValueError("all training texts are empty")
    return symbols


def encode(texts: Sequence[str], vocabulary: Sequence[str], units: Units) -> list[np.ndarray]:
    """Symbol numbers of every text, int64 (L_i,); symbols outside the vocabulary are left out with one warning."""
    number = {symbol: i for i, symbol in enumerate(vocabulary)}
    strange: Counter[str] = Counter()
    rows = []
    for text in texts:
        symbols = split_text(text, units)
        strange.update(s for s in symbols if s not in number)
        rows.append(np.array([number[s] for s in symbols if s in number], dtype=np.int64))
    if strange:
        seen = ", ".join(f"{symbol!r} ({count})" for symbol, count in strange.most_common(8))
        warnings.warn(f"symbols that the training texts lack are left out of the references: {seen}", stacklevel=2)
    return rows
