"""What ``adapt.py`` leaves behind: figures by shift, the table a user reads, and pictures of the stream."""

from __future__ import annotations

import copy
import csv
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.panel import Panel
from rich.table import Table

from ssl_suite.batch import Spec
from ssl_suite.data.streams import CLEAN, ShiftStreams
from ssl_suite.streaming import Outcome
from ssl_suite.summary import Summary
from ssl_suite.views import Views

ERRORS = ("error_source", "error_adapted", "gain")
WORDS = ("wer_source", "wer_adapted")
COUNTS = ("n", "skipped", "resets")
POINTS = 4000
LABELS = 40
"""Points of a curve, and names above it, that a picture holds."""


def by_shift(outcomes: Sequence[Outcome]) -> dict[str, dict[str, float]]:
    """Figures of each shift over all its segments (rounds, severities), or over its samples where shifts are mixed.

    Errors are means of segments, which are all as long for one shift; counts are sums.
    """
    found: dict[str, list[dict[str, Any]]] = {}
    for outcome in outcomes:
        for (name, _), row in zip(outcome.segment.pairs, outcome.inner_rows() or [outcome.row()], strict=True):
            found.setdefault(name, []).append(row)
    table: dict[str, dict[str, float]] = {}
    for name, rows in found.items():
        table[name] = {key: float(np.mean([row[key] for row in rows])) for key in (*ERRORS, *WORDS) if key in rows[0]}
        table[name] |= {key: sum(row.get(key, 0) for row in rows) for key in COUNTS}
        table[name]["error_clean_after"] = mean_measured(row.get("error_clean_after", np.nan) for row in rows)
    return table


def mean_measured(values: Any) -> float:
    """Mean of the values that are no NaN; NaN without any."""
    there = [value for value in values if value == value]
    return float(np.mean(there)) if there else float("nan")


def scores(outcomes: Sequence[Outcome], clean: float) -> tuple[dict[str, float], dict[str, float]]:
    """Scores of the adapter and of its source model as ``summary.json`` has them; means are over shifts, without `clean`.

    Args:
        outcomes: one for each segment.
        clean: error of the source model on clean data.
    """
    table = by_shift(outcomes)
    shifted = [row for name, row in table.items() if name != CLEAN] or list(table.values())
    found = {key: float(np.mean([row[key] for row in shifted])) for key in (*ERRORS, *WORDS) if key in shifted[0]}
    source = {"error": found["error_source"]} | {f"error_{name}": row["error_source"] for name, row in table.items()}
    found |= {"error_clean_before": clean, "error_clean_after": mean_measured(o.clean_after for o in outcomes)}
    found |= {f"error_adapted_{name}": row["error_adapted"] for name, row in table.items()}
    rounds = {o.segment.round for o in outcomes}
    for number in sorted(rounds) if len(rounds) > 1 else ():
        these = [o for o in outcomes if o.segment.round == number]
        wrong, asked = (sum(sum(getattr(o, counts)) for o in these) for counts in ("adapted", "wanted"))
        found[f"error_adapted_round_{number + 1}"] = wrong / asked
    for name, which in (("ms", "adapted_ms"), ("ms_source", "source_ms")):
        times = np.concatenate([getattr(o, which) for o in outcomes])
        found |= {f"{name}_median": float(np.median(times)), f"{name}_p95": float(np.percentile(times, 95))}
    found |= {"memory_mib": max(o.memory for o in outcomes),
              "share_used": sum(o.used for o in outcomes) / sum(len(o.adapted) for o in outcomes),
              "skipped": sum(o.row()["skipped"] for o in outcomes), "resets": sum(len(o.resets) for o in outcomes)}
    return found, source


def write_metrics(folder: Path, outcomes: Sequence[Outcome]) -> None:
    """One row per segment in ``metrics.csv``, and one per shift below a segment that mixes them."""
    rows = [{"segment": i, **row} for i, o in enumerate(outcomes) for row in (o.row(), *o.inner_rows())]
    with (folder / "metrics.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def draw_stream(path: Path, outcomes: Sequence[Outcome]) -> None:
    """Error over the last samples along the whole stream, source beside adapted, with resets and clean errors."""
    from matplotlib.figure import Figure

    ends = np.cumsum([len(o.segment) for o in outcomes])
    starts = ends - [len(o.segment) for o in outcomes]
    total = int(ends[-1])
    window = max(8, min(len(outcomes[0].segment) // 6, total // 20))
    names = [o.segment.name.split(":")[0] for o in outcomes]
    groups = [next(group) for _, group in itertools.groupby(range(len(outcomes)), lambda i: names[i])]
    figure = Figure(figsize=(min(24.0, max(6.0, 1.1 * len(groups))), 3.2), layout="constrained")
    axes = figure.subplots()
    stop = np.unique(np.linspace(1, total, min(total, POINTS)).astype(np.int64))
    start = np.maximum(0, stop - window)
    sums = {name: np.cumsum(np.concatenate([[0.0], *(getattr(o, name) for o in outcomes)]))
            for name in ("source", "adapted", "wanted")}
    for name, colour in (("source", "0.6"), ("adapted", "tab:blue")):
        share = np.divide(*(sums[key][stop] - sums[key][start] for key in (name, "wanted")))
        axes.plot(stop, 100.0 * share, color=colour, label=name)
    for first in groups:
        axes.axvline(starts[first], color="0.9", zorder=0)
        if len(groups) <= LABELS:
            axes.text(starts[first], 101, f" {names[first]}", rotation=30, fontsize=7, va="bottom")
    resets = [first + seen for first, o in zip(starts, outcomes, strict=True) for seen in o.resets]
    axes.plot(resets, np.zeros(len(resets)), "k|", markersize=9, clip_on=False, label="reset" if resets else None)
    clean = [(end, 100.0 * o.clean_after) for end, o in zip(ends, outcomes, strict=True) if o.clean_after == o.clean_after]
    axes.plot(*zip(*clean, strict=True), "o", color="tab:green", markersize=4, clip_on=False, label="clean data,\nat that point")
    axes.set(xlabel="samples seen", ylabel=f"error of the last {window}, %", ylim=(0, 100), xlim=(0, total))
    axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), fontsize=7, frameon=False)
    figure.savefig(path, dpi=110)


def draw_shifts(path: Path, data: Any, spec: Spec, streams: ShiftStreams, samples: int = 3) -> None:
    """A few samples under every shift: pictures, or lines over time."""
    from matplotlib.figure import Figure

    names = [CLEAN, *(n for n in streams.names(spec) if n != CLEAN)]
    figure = Figure(figsize=(1.2 * len(names), 1.25 * samples + 0.3), layout="constrained")
    grid = figure.subplots(samples, len(names), squeeze=False)
    few, scale = copy.copy(streams), Views().standardise(spec)
    few.limit = samples
    for column, name in enumerate(names):
        x = (next(few.batches(data, spec, name))["x"] * scale.std + scale.mean).numpy()
        for axes, sample in zip(grid[:, column], x, strict=False):
            if spec.modality == "images":
                axes.imshow(sample.transpose(1, 2, 0).clip(0, 1).squeeze(), cmap="gray", vmin=0, vmax=1)
            else:
                axes.plot(np.atleast_2d(sample).T, linewidth=0.5)
        grid[0, column].set_title(name, fontsize=7)
    for axes in grid.flat:
        axes.set_axis_off()
    figure.savefig(path, dpi=110)


def report(folder: Path, summary: Summary, outcomes: Sequence[Outcome], batch_size: int) -> None:
    """The table that a user reads at the end, and where everything lies."""
    found, rows = summary["scores"], by_shift(outcomes)
    counts = ("n", *(key for key in COUNTS[1:] if found[key]))
    table = Table(title=f"{summary['method']} on {summary['data']}, seed {summary['seed']}: error in %", title_justify="left")
    for name in ("shift", "source", "adapted", "gain", *counts, "clean after"):
        table.add_column(name, justify="left" if name == "shift" else "right", no_wrap=True)
    rows["mean of shifts"] = {**found, "n": sum(len(o.adapted) for o in outcomes)}
    for name, row in rows.items():
        after = row["error_clean_after"]
        if name == "mean of shifts":
            table.add_section()
        table.add_row(name, *(f"{100 * row[key]:.1f}" for key in ERRORS), *(f"{row[key]:.0f}" for key in counts),
                      f"{100 * after:.1f}" if after == after else "")
    rounds = [f"{100 * value:.1f}" for key, value in found.items() if key.startswith("error_adapted_round_")]
    lines = [*([f"round by round: {' '.join(rounds)} %"] if rounds else []),
             f"clean error {100 * found['error_clean_before']:.1f} % before, {100 * found['error_clean_after']:.1f} % after",
             f"learned from {100 * found['share_used']:.0f} % of the samples, {summary['samples_per_second']:.0f} samples/s",
             f"a batch of {batch_size}: {found['ms_median']:.1f} ms, 95 of 100 within {found['ms_p95']:.1f}; "
             f"plain model {found['ms_source_median']:.1f}, {found['ms_source_p95']:.1f}",
             f"memory {found['memory_mib']:.0f} MiB, {summary['wall_seconds']:.0f} s in all",
             f"adapted   {folder / 'adapter.pt'}", f"metrics   {folder / 'metrics.csv'}",
             f"pictures  {folder / 'pictures'}: shifts.png, stream.png", f"summary   {folder / 'summary.json'}"]
    console = Console()
    console.print(table)
    console.print(Panel("\n".join(lines), title=str(folder), title_align="left"), soft_wrap=True)
