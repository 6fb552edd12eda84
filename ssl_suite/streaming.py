"""Streams through an adapter, beside the source model it started from: who was wrong, how long it took, what it held."""

from __future__ import annotations

import os
import resource
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.progress import Progress
from torch import Tensor, nn

from ssl_suite.batch import Batch, Spec
from ssl_suite.data.streams import CLEAN, Segment, ShiftStreams
from ssl_suite.scoring import mistakes, wanted, word_mistakes


@dataclass
class Outcome:
    """What happened on one segment of a stream.

    Attributes:
        segment: what came.
        source: mistakes of the source model, per sample in order; see `ssl_suite.scoring.mistakes`.
        adapted: mistakes of the adapter, each sample predicted once, when it arrived.
        wanted: how much there was to get right in each sample: one class, or so many letters.
        words: for transcripts that have words, those of each sample, and the source model's and the adapter's mistakes.
        used: samples learned from.
        verdicts: how often each verdict was given on an update.
        resets: samples of this segment seen at each return to the source model.
        source_ms: milliseconds of the source model's forward pass, per batch.
        adapted_ms: milliseconds of `predict_and_adapt`, per batch.
        memory: MiB at its highest: on a GPU of all that was allocated, on a CPU by how much the process has grown since the
            stream began.
        clean_after: error on clean data right after the segment; NaN where it was not measured.
    """

    segment: Segment
    source: list[int] = field(default_factory=list)
    adapted: list[int] = field(default_factory=list)
    wanted: list[int] = field(default_factory=list)
    words: list[tuple[int, int, int]] = field(default_factory=list)
    used: int = 0
    verdicts: Counter[str] = field(default_factory=Counter)
    resets: list[int] = field(default_factory=list)
    source_ms: list[float] = field(default_factory=list)
    adapted_ms: list[float] = field(default_factory=list)
    memory: float = 0.0
    clean_after: float = float("nan")

    def errors(self, which: np.ndarray | None = None) -> dict[str, float]:
        """Errors as shares, of all samples or of those that are chosen, (N,) bool."""
        chosen = slice(None) if which is None else which
        source, adapted, asked = (np.array(counts)[chosen] for counts in (self.source, self.adapted, self.wanted))
        before, after = (float(wrong.sum() / asked.sum()) for wrong in (source, adapted))
        return {"n": len(asked), "error_source": before, "error_adapted": after, "gain": before - after}

    def row(self) -> dict[str, Any]:
        """The segment in one row of ``metrics.csv``."""
        times = {f"{name}_{q}": round(float(np.percentile(ms, p)), 3) for name, ms in
                 (("ms", self.adapted_ms), ("ms_source", self.source_ms)) for q, p in (("median", 50), ("p95", 95))}
        words, *wrong = map(sum, zip(*self.words, strict=True)) if self.words else (0,)
        rates = {f"wer_{who}": count / words for who, count in zip(("source", "adapted"), wrong, strict=False)}
        return {"shift": self.segment.name, "round": self.segment.round, **self.errors(), "n_used": self.used,
                "updates": self.verdicts["ok"], "skipped": self.verdicts["skip"] + self.verdicts["rollback"],
                "resets": len(self.resets), "seconds": round(sum(self.adapted_ms) / 1000.0, 3), **times,
                "memory": round(self.memory, 1), "error_clean_after": self.clean_after, **rates}

    def inner_rows(self) -> list[dict[str, Any]]:
        """Where shifts are mixed, the errors under each: rows named ``mixed:SHIFT``."""
        if len(self.segment.pairs) == 1:
            return []
        return [{"shift": f"{self.segment.name}:{name}", "round": self.segment.round, **self.errors(self.segment.which == i)}
                for i, (name, _) in enumerate(self.segment.pairs)]


def inputs(batch: Batch, device: torch.device) -> tuple[Tensor, ...]:
    """What a model takes, on a device: samples, and their lengths where rows are padded."""
    return tuple(batch[key].to(device) for key in ("x", "length") if key in batch)


@contextmanager
def clock(milliseconds: list[float], device: torch.device) -> Iterator[None]:
    """Append the time that a block takes, the device's work included."""
    start = time.perf_counter()
    yield
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    milliseconds.append(1000.0 * (time.perf_counter() - start))


def start_memory(device: torch.device) -> float:
    """Begin to watch memory; gives what is to be taken off `memory` from here on."""
    if device.type != "cuda":
        return memory(device)
    torch.cuda.reset_peak_memory_stats(device)
    return 0.0


def memory(device: torch.device) -> float:
    """MiB: on a GPU the most that was allocated so far, on a CPU what the process holds at the moment."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    statistics = Path("/proc/self/statm")
    if statistics.exists():
        return int(statistics.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # macOS: the most so far, in bytes


def run_segment(adapter: Any, source: nn.Module, batches: Iterator[Batch], outcome: Outcome, device: torch.device,
                vocabulary: Sequence[str] = ()) -> Iterator[Any]:
    """Send one segment through the source model and through the adapter, each sample once; yields the report on each batch.

    Args:
        adapter: an `Adapter`, or what answers to the same calls.
        source: the model it started from.
        batches: the samples.
        outcome: filled in as they pass.
        device: where the models are.
        vocabulary: symbols of the transcripts, where the models write them.
    """
    for batch in batches:
        given, index = inputs(batch, device), batch["index"].to(device)
        with torch.no_grad(), clock(outcome.source_ms, device):
            plain = source(*given)
        with clock(outcome.adapted_ms, device):
            logits, report = adapter.predict_and_adapt(*given, index=index)
        outcome.source += mistakes(plain, batch, outcome.segment.classes)
        outcome.adapted += mistakes(logits, batch, outcome.segment.classes)
        outcome.wanted += wanted(batch)
        outcome.words += word_mistakes(plain, logits, batch, vocabulary)
        outcome.used += report.n_used
        outcome.verdicts[report.verdict] += 1
        yield report


def run_streams(adapter: Any, source: nn.Module, data: Any, spec: Spec, streams: ShiftStreams,
                device: torch.device) -> list[Outcome]:
    """All segments in order, with resets as configured and checks for forgetting before each reset and at the end."""
    segments, outcomes, updates = streams.segments(data, spec), [], 0
    base = start_memory(device)
    with Progress(transient=True) as progress:
        task = progress.add_task("adapting", total=sum(map(len, segments)))
        for segment in segments:
            progress.update(task, description=f"adapting to {segment.name}")
            outcome, last = Outcome(segment), segment is segments[-1]
            for report in run_segment(adapter, source, streams.read(data, spec, segment), outcome, device, spec.vocabulary):
                outcome.memory = max(outcome.memory, memory(device) - base)
                updates = 0 if report.verdict == "reset" else updates + (report.verdict == "ok")
                due = updates == streams.reset
                if due:
                    adapter.reset()
                    updates = 0
                if due or report.verdict == "reset":
                    outcome.resets.append(len(outcome.adapted))
                progress.update(task, advance=streams.batch_size)
            if streams.reset == "each_shift" or streams.forgetting or last:
                outcome.clean_after = clean_error(adapter.predict, data, spec, streams, device)
            outcomes.append(outcome)
            if streams.reset == "each_shift" and not last:
                adapter.reset()
                outcome.resets.append(len(segment))
    return outcomes


def clean_error(predict: Callable[..., Tensor], data: Any, spec: Spec, streams: ShiftStreams, device: torch.device) -> float:
    """Error on the unshifted samples of the part, shuffled, without learning."""
    wrong, asked = 0, 0
    with torch.no_grad():
        for batch in streams.batches(data, spec, CLEAN):
            wrong += sum(mistakes(predict(*inputs(batch, device)), batch))
            asked += sum(wanted(batch))
    return wrong / asked


def calibrate(adapter: Any, data: Any, spec: Spec, streams: ShiftStreams, device: torch.device) -> None:
    """Show an adapter that asks for it so many clean training samples, without labels, before it is deployed."""
    count = getattr(adapter, "calibration", 0)
    if count:
        clean = ShiftStreams(part="train", limit=count, batch_size=streams.batch_size, seed=streams.seed)
        batches = (inputs(batch, device) for batch in clean.batches(data, spec, CLEAN))
        adapter.calibrate((given[0], given[1] if len(given) > 1 else None) for given in batches)
