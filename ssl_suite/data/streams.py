"""Streams: a part of a data set, shifted, in the order in which a deployed model would meet it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
import torch.nn.functional as F

from ssl_suite.batch import Batch, Spec
from ssl_suite.data import orders
from ssl_suite.data.published import SEVERITIES, Shifted, open_folder
from ssl_suite.data.sources import Source
from ssl_suite.views import Views
from ssl_suite.views.corruptions import Corruption, Family, corruption_names

CLEAN = "clean"
BENCHMARK = 15
"""Of the corruptions of pictures, the first so many are the benchmark; the spares are for choosing hyper-parameters."""
RAMP = (*SEVERITIES, *SEVERITIES[-2::-1])
BLOCK = 64
"""Samples that are read and corrupted together where fewer arrive together."""

Order = Literal["iid", "sorted", "correlated", "label_shift", "gradual", "mixed"]
Pair = tuple[str, int]
"""A shift and its severity."""


@dataclass(frozen=True)
class Segment:
    """A stretch of a stream: which samples come, in order, and how each is shifted.

    Attributes:
        name: the shift, with its severity where that changes (``fog:3``), or ``mixed``.
        pairs: the shifts in it, with their severities.
        which: place in ``pairs`` of each sample, (N,).
        rows: place of each sample in its source, (N,).
        round: pass over the stream, from 0.
        classes: the only classes that occur, where a published set has fewer than the network; predictions are then
            confined to them.
    """

    name: str
    pairs: tuple[Pair, ...]
    which: np.ndarray
    rows: np.ndarray
    round: int = 0
    classes: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.rows)


class ShiftStreams:
    """Segments of shifted samples, one after the other; all draws follow ``seed``, whatever the batch size.

    ============ =======================================================================================================
    order        what arrives
    ============ =======================================================================================================
    iid          each shift in turn, the same samples in the same shuffled order
    sorted       each shift in turn, class after class
    correlated   each shift in turn, neighbours often of one class; see `orders.dirichlet`
    label_shift  each shift in turn, shuffled, classes unlike in frequency; see `orders.long_tailed`
    gradual      each shift in turn, shuffled, its severity going 1, 2, 3, 4, 5, 4, 3, 2, 1: nine segments
    mixed        all shifts at once: every sample once under every shift, shuffled; one segment
    ============ =======================================================================================================

    Args:
        shifts: names of corruptions, or ``all``; ``clean`` is the data as they are.
        severity: 1 to 5.
        family: constants for pictures; see `Corruption`.
        order: see above.
        delta: concentration of ``correlated``, above 0; papers use 0.1 (RoTTA) and 0.01 to 1.
        imbalance: of ``label_shift``, samples of the most frequent class for each of the rarest.
        repeats: passes over all shifts; corruptions are drawn anew in each.
        folder: a published set in place of corruptions drawn here; see `open_folder`.
        class_list: names of the network's classes; see `open_folder`.
        batch_size: samples that arrive together.
        limit: samples per shift; None takes the whole part.
        reset: go back to the source model at the end of ``each_shift`` (a benchmark's setting; of each segment, that is),
            after so many updates (1000 in RDumb; Press et al., NeurIPS 2023), or ``never``.
        forgetting: measure the error on clean data after every segment, and not only before a reset and at the end.
        part: part of the data.
        seed: seed of the order and of the corruptions.

    Raises:
        ValueError: an unknown value, told by its name.
    """

    def __init__(self, *, shifts: str | Sequence[str] = "all", severity: int = 5, family: Family | None = None,
                 order: Order = "iid", delta: float = 0.1, imbalance: float = 10.0, repeats: int = 1,
                 folder: str | Path | None = None, class_list: str | Path | None = None, batch_size: int = 128,
                 limit: int | None = None, reset: Literal["each_shift", "never"] | int = "each_shift", forgetting: bool = False,
                 part: str = "test", seed: int = 0) -> None:
        if reset not in ("each_shift", "never") and not (isinstance(reset, int) and not isinstance(reset, bool) and reset >= 1):
            raise ValueError(f"reset={reset!r} is not one of 'each_shift', 'never', or a number of updates")
        if order not in get_args(Order):
            raise ValueError(f"order={order!r} is not one of {', '.join(get_args(Order))}")
        if batch_size < 1 or repeats < 1 or (limit is not None and limit < 1):
            raise ValueError(f"batch_size={batch_size}, repeats={repeats} and limit={limit} must be at least 1")
        if not delta > 0 or not imbalance >= 1 or severity not in SEVERITIES:
            raise ValueError(f"delta={delta} must be above 0, imbalance={imbalance} at least 1, severity={severity} from 1 to 5")
        self.shifts, self.severity, self.family, self.order = shifts, severity, family, order
        self.delta, self.imbalance, self.repeats = delta, imbalance, repeats
        self.folder, self.class_list = folder, class_list
        self.reset, self.forgetting = reset, forgetting
        self.batch_size, self.limit, self.part, self.seed = batch_size, limit, part, seed

    def published(self, spec: Spec) -> Shifted:
        """What ``folder`` holds; nothing without one."""
        return {} if self.folder is None else open_folder(self.folder, spec, self.class_list)

    def names(self, spec: Spec) -> list[str]:
        """Shifts in order; ``all`` are those of the benchmark, or else whatever a folder holds.

        Raises:
            ValueError: one of them is unknown in this modality or folder.
        """
        known: Sequence[str] = corruption_names(spec.modality)
        if self.folder is not None:
            found = list(dict.fromkeys(name for name, _ in self.published(spec)))
            known = [name for name in known if name in found] or found
            known = [*known, *(name for name in found if name not in known)]
        if self.shifts == "all":
            return [n for n in known if n in corruption_names(spec.modality)[:BENCHMARK]] or list(known)
        names = [self.shifts] if isinstance(self.shifts, str) else list(self.shifts)
        for name in names:
            if name not in (*known, CLEAN):
                where = spec.modality if self.folder is None else str(self.folder)
                raise ValueError(f"no shift {name!r} of {where}; there are {CLEAN}, {', '.join(known)}")
        return names

    def segments(self, data: Any, spec: Spec) -> list[Segment]:
        """The whole stream, in order.

        Args:
            data: a data module that was set up.
            spec: the data the model was trained on.

        Raises:
            ValueError: an unknown shift or part, or an order that needs class labels and has none.
        """
        names = self.names(spec)
        if self.order == "mixed":
            plan: list[tuple[str, tuple[Pair, ...]]] = [("mixed", tuple((n, self.severity) for n in names))]
        elif self.order == "gradual":
            plan = [(n if n == CLEAN else f"{n}:{s}", ((n, s),)) for n in names for s in (RAMP if n != CLEAN else (1,))]
        else:
            plan = [(n, ((n, self.severity),)) for n in names]
        plan *= self.repeats
        per_round = len(plan) // self.repeats
        return [self._segment(data, spec, name, pairs, i, i // per_round) for i, (name, pairs) in enumerate(plan)]

    def read(self, data: Any, spec: Spec, segment: Segment) -> Iterator[Batch]:
        """Batches of a segment, ``x`` shifted and then standardised as the model was trained.

        Args:
            data: a data module that was set up.
            spec: the data the model was trained on.
            segment: one of `segments`.
        """
        sources = [self._source(data, spec, *pair)[0] for pair in segment.pairs]
        views = [self._views(spec, *pair) for pair in segment.pairs]
        block = self.batch_size * max(1, BLOCK // self.batch_size)
        for start in range(0, len(segment), block):
            which, rows = segment.which[start : start + block], segment.rows[start : start + block]
            parts, places = [], []
            for i in np.unique(which):
                places.append(np.flatnonzero(which == i))
                indices = rows[places[-1]]
                batch = {**sources[i].fetch(indices), "index": torch.from_numpy(indices.astype(np.int64))}
                batch["epoch"] = torch.full_like(batch["index"], segment.round)
                parts.append({**batch, "x": views[i](batch, "shift")[0]})
            ready = joined(parts, torch.from_numpy(np.argsort(np.concatenate(places))))
            for first in range(0, len(rows), self.batch_size):
                yield cut(ready, first, first + self.batch_size)

    def batches(self, data: Any, spec: Spec, name: str) -> Iterator[Batch]:
        """Batches of all samples of the part under one shift, shuffled, whatever ``order`` is; see `read`.

        Raises:
            ValueError: the data have no such part.
        """
        rows = self._source(data, spec, name, self.severity)[1]
        return self.read(data, spec, Segment(name, ((name, self.severity),), np.zeros(len(rows), np.int64), rows))

    def _segment(self, data: Any, spec: Spec, name: str, pairs: tuple[Pair, ...], number: int, round_: int) -> Segment:
        """Samples of a segment in order."""
        found = [self._source(data, spec, *pair) for pair in pairs]
        rows = np.concatenate([r for _, r in found])
        which = np.repeat(np.arange(len(pairs)), [len(r) for _, r in found])
        rng = np.random.default_rng((self.seed, number + 1))
        places = np.arange(len(rows))
        if self.order == "mixed":
            places = rng.permutation(len(rows))
        elif self.order in ("sorted", "correlated", "label_shift"):
            labels = found[0][0].targets
            if labels is None:
                raise ValueError(f"order={self.order} needs class labels, and these data have none; take order=iid")
            labels = labels[rows]
            places = (orders.by_class(labels, rng) if self.order == "sorted" else
                      orders.dirichlet(labels, self.delta, rng) if self.order == "correlated" else
                      orders.long_tailed(labels, self.imbalance, np.random.default_rng(self.seed)))
        classes = None
        if self.folder is not None and CLEAN not in dict(pairs):
            classes = np.unique(np.concatenate([s.targets for s, _ in found]))
        return Segment(name, pairs, which[places], rows[places], round_, classes)

    def _source(self, data: Any, spec: Spec, name: str, severity: int) -> tuple[Source, np.ndarray]:
        """Where the samples of a shift come from, and which of them, shuffled."""
        if name == CLEAN or self.folder is None:
            if self.part not in data.parts:
                raise ValueError(f"part={self.part!r}: these data have {', '.join(data.parts)}")
            source, everything = data.parts[self.part]
        else:
            found = self.published(spec)
            opens = found.get((name, severity)) or found.get((name, None))
            if opens is None or (self.order == "gradual" and (name, None) in found):
                there = ", ".join(str(s) for n, s in found if n == name and s) or "none"
                raise ValueError(f"folder={self.folder} holds no severity {severity} of {name}; there are {there}")
            source = opens()
            everything = np.arange(len(source))
        return source, np.random.default_rng(self.seed).permutation(everything)[: self.limit]

    def _views(self, spec: Spec, name: str, severity: int) -> Views:
        """The shift as a view; nothing where the samples come shifted already."""
        drawn = name != CLEAN and self.folder is None
        ops = [Corruption(name, severity, spec.modality, self.family, spec.rate or 16000)] if drawn else []
        return Views({"shift": ops}, self.seed).standardise(spec)


def joined(parts: Sequence[Batch], order: torch.Tensor) -> Batch:
    """Batches as one, padded to the longest row, with the rows in a given order."""
    def pad(key: str, value: torch.Tensor) -> torch.Tensor:
        short = max(part[key].shape[-1] for part in parts) - value.shape[-1] if value.ndim > 1 else 0
        return F.pad(value, (0, short), value=-1 if key == "y" else 0) if short else value

    return {key: torch.cat([pad(key, part[key]) for part in parts])[order] for key in parts[0]}


def cut(batch: Batch, start: int, stop: int) -> Batch:
    """Rows of a batch, padded no longer than they need."""
    rows = {key: value[start:stop] for key, value in batch.items()}
    for key, length in (("x", "length"), ("y", "y_length")):
        if length in rows:
            rows[key] = rows[key][..., : int(rows[length].max())]
    return rows
