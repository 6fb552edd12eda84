"""The summary of a run: a fixed schema that tables are built from, and what the user reads at the end."""

from __future__ import annotations

import json
import math
import platform
import subprocess
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any, TypedDict

from rich.console import Console
from rich.table import Table

from ssl_suite.config import ConfigError

PACKAGES = ("torch", "torchvision", "torchaudio", "lightning", "timm", "lightly", "hydra-core", "numpy")


class Summary(TypedDict):
    """Content of ``summary.json``; every key is always there. The names of the scores stand in ``docs/summary.md``.

    Keys:
        method: name of the method's config or class.
        data: name of the data's config or class.
        modality: ``images``, ``speech`` or ``series``.
        seed: seed of the run.
        commit: git commit of the code, with ``+`` when files were changed; ``unknown`` outside a checkout.
        versions: version of every package that matters.
        wall_seconds: from start to end, evaluation included.
        samples_per_second: training (or adaptation) samples per second of training (adaptation) time.
        data_wait: share of the last epoch's training time spent waiting for data, in [0, 1]; None where it was not measured.
        scores: what the run reached, name -> finite number.
        references: the same of what it is to be compared with: ``untrained`` and ``raw``, or ``source``; may be empty.
    """

    method: str
    data: str
    modality: str
    seed: int
    commit: str
    versions: dict[str, str]
    wall_seconds: float
    samples_per_second: float
    data_wait: float | None
    scores: dict[str, float]
    references: dict[str, dict[str, float]]


def commit() -> str:
    """Commit of the checkout the package lies in."""
    folder = Path(__file__).resolve().parent
    try:
        head = subprocess.run(["git", "rev-parse", "--short=12", "HEAD"], cwd=folder, capture_output=True, text=True, timeout=60)
        status = subprocess.run(["git", "status", "--porcelain", "-uno"], cwd=folder, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"
    return head.stdout.strip() + ("+" if status.stdout.strip() else "") if head.returncode == 0 else "unknown"


def versions() -> dict[str, str]:
    """Installed versions of the packages a result depends on, and of Python."""
    return {"python": platform.python_version(), **{name: metadata.version(name) for name in PACKAGES}}


def check_summary(summary: Mapping[str, Any]) -> None:
    """Check that a summary follows the schema.

    Raises:
        ValueError: a key is missing or unknown, a value is of another type, or a number is not finite.
    """
    if summary.keys() != Summary.__annotations__.keys():
        odd = sorted(summary.keys() ^ Summary.__annotations__.keys())
        raise ValueError(f"summary.json: missing or unknown keys {', '.join(odd)}")
    for key in ("method", "data", "modality", "commit"):
        if not isinstance(summary[key], str) or not summary[key]:
            raise ValueError(f"summary.json: {key}={summary[key]!r} is no text")
    if type(summary["seed"]) is not int:
        raise ValueError(f"summary.json: seed={summary['seed']!r} is no whole number")
    if not summary["versions"] or not all(isinstance(v, str) for v in summary["versions"].values()):
        raise ValueError(f"summary.json: versions={summary['versions']} is no map of names to texts")
    if not summary["scores"]:
        raise ValueError("summary.json: there are no scores")
    numbers = {key: summary[key] for key in ("wall_seconds", "samples_per_second", "data_wait")}
    if numbers["data_wait"] is None:
        del numbers["data_wait"]
    for where, scores in {"scores": summary["scores"], **summary["references"]}.items():
        numbers |= {f"{where}.{name}": value for name, value in scores.items()}
    for where, value in numbers.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise ValueError(f"summary.json: {where}={value!r} is no finite number")


def write_summary(folder: Path, summary: Summary) -> None:
    """Check ``summary.json`` and write it in one piece.

    Raises:
        ValueError: see `check_summary`.
    """
    check_summary(summary)
    temporary = folder / ".summary.json.tmp"
    temporary.write_text(json.dumps(summary, indent=2) + "\n")
    temporary.replace(folder / "summary.json")


def read_summary(folder: Path) -> Summary:
    """The summary of a finished run.

    Raises:
        ConfigError: the folder holds none.
        ValueError: see `check_summary`.
    """
    if not (folder / "summary.json").is_file():
        raise ConfigError(f"{folder} holds no finished run: there is no summary.json in it; give the folder of a run that ended")
    summary: Summary = json.loads((folder / "summary.json").read_text())
    check_summary(summary)
    return summary


def print_summary(folder: Path, summary: Summary, next_commands: list[str]) -> None:
    """The summary as a table: scores beside the references, where everything lies, what to type next."""
    console = Console()
    columns = {"this run": summary["scores"], **{k: v for k, v in summary["references"].items() if v}}
    table = Table(title=f"{summary['method']} on {summary['data']}, seed {summary['seed']}", title_justify="left")
    table.add_column("")
    for name in columns:
        table.add_column(name, justify="right")
    for row in summary["scores"]:
        table.add_row(row, *(f"{values[row]:.3f}" if row in values else "" for values in columns.values()))
    console.print(table)
    pictures = ", ".join(sorted(p.name for p in (folder / "pictures").glob("*.png")))
    waited = "" if summary["data_wait"] is None else f", {100 * summary['data_wait']:.0f} % of it spent waiting for data"
    lines = [f"{summary['wall_seconds']:.0f} s in all, {summary['samples_per_second']:.0f} samples/s in training{waited}", "",
             f"weights   {folder / 'backbone.safetensors'}",
             f"metrics   {folder / 'metrics.csv'}, or: tensorboard --logdir {folder}",
             f"pictures  {folder / 'pictures'}: {pictures or 'none'}",
             f"summary   {folder / 'summary.json'}", ""]
    lines += ["next:", *(f"  {command}" for command in next_commands)]
    console.print("\n".join(lines), soft_wrap=True, highlight=False)


def timed_rate(samples: int, seconds: float) -> float:
    """Samples per second, rounded; 0 when nothing ran."""
    return round(samples / seconds, 1) if seconds > 0 else 0.0


def flat(scores: dict[str, Any]) -> dict[str, float]:
    """Scores as plain rounded floats."""
    return {name: round(float(value), 6) for name, value in scores.items()}
