"""Streams: a part of a data set, corrupted, in the order in which a deployed model would meet it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Literal

import numpy as np
import torch

from ssl_suite.batch import Batch, Modality, Spec
from ssl_suite.views import Views
from ssl_suite.views.corruptions import Corruption, Family, corruption_names

CLEAN = "clean"
BENCHMARK = 15
"""Of the corruptions of pictures, the first so many are the benchmark; the spares are for choosing hyper-parameters."""


class ShiftStreams:
    """One stream per shift, each the same samples in the same shuffled (i.i.d.) order.

    Args:
        shifts: names of corruptions, or ``all``; ``clean`` is the data as they are.
        severity: 1 to 5.
        family: constants for pictures; see `Corruption`.
        batch_size: samples that arrive together.
        limit: samples per stream; None takes the whole part.
        reset: go back to the source model at the end of ``each_shift`` (a benchmark's setting) or ``never``.
        part: part of the data.
        seed: seed of the order and of the corruptions.

    Raises:
        ValueError: an unknown value, told by its name.
    """

    def __init__(self, *, shifts: str | Sequence[str] = "all", severity: int = 5, family: Family | None = None,
                 batch_size: int = 128, limit: int | None = None, reset: Literal["each_shift", "never"] = "each_shift",
                 part: str = "test", seed: int = 0) -> None:
        if reset not in ("each_shift", "never"):
            raise ValueError(f"reset={reset!r} is not one of 'each_shift', 'never'")
        if batch_size < 1 or (limit is not None and limit < 1):
            raise ValueError(f"batch_size={batch_size} and limit={limit} must be at least 1")
        self.shifts, self.severity, self.family, self.reset = shifts, severity, family, reset
        self.batch_size, self.limit, self.part, self.seed = batch_size, limit, part, seed

    def names(self, modality: Modality) -> list[str]:
        """Shifts in order.

        Raises:
            ValueError: one of them is unknown in this modality.
        """
        known = corruption_names(modality)
        if self.shifts == "all":
            return list(known[:BENCHMARK])
        names = [self.shifts] if isinstance(self.shifts, str) else list(self.shifts)
        for name in names:
            if name not in (*known, CLEAN):
                raise ValueError(f"no shift {name!r} of {modality}; there are {CLEAN}, {', '.join(known)}")
        return names

    def batches(self, data: Any, spec: Spec, name: str) -> Iterator[Batch]:
        """Batches of one stream, ``x`` corrupted and then standardised as the model was trained.

        Args:
            data: a data module that was set up.
            spec: the data the model was trained on.
            name: a shift.

        Raises:
            ValueError: the data have no such part.
        """
        if self.part not in data.parts:
            raise ValueError(f"part={self.part!r}: these data have {', '.join(data.parts)}")
        ops = [] if name == CLEAN else [Corruption(name, self.severity, spec.modality, self.family, spec.rate or 16000)]
        views = Views({"shift": ops}, self.seed).standardise(spec)
        source, everything = data.parts[self.part]
        order = np.random.default_rng(self.seed).permutation(everything)[: self.limit]
        for start in range(0, len(order), self.batch_size):
            indices = order[start : start + self.batch_size]
            batch = {**source.fetch(indices), "index": torch.from_numpy(indices.astype(np.int64))}
            yield {**batch, "x": views(batch, "shift")[0]}
