"""From a trained run to an adapted model: everything behind ``adapt.py``."""

from __future__ import annotations

import copy
import csv
import inspect
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import hydra
import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.panel import Panel
from rich.progress import Progress
from rich.table import Table
from torch import Tensor, nn

from ssl_suite.adapter import Adapter
from ssl_suite.batch import Batch
from ssl_suite.config import ConfigError, refuse_scripted, validate
from ssl_suite.data.streams import CLEAN, ShiftStreams
from ssl_suite.method import Method
from ssl_suite.run import Run, build_data, building, load_run, name_of, plain
from ssl_suite.summary import Summary, commit, flat, timed_rate, versions, write_summary
from ssl_suite.views import Views

GROUPS = ("name", "seed", "model", "adapter", "checkpoint", "data", "backbone", "backbones", "optimizer", "schedule",
          "trainer", "stream", "root", "trusted_packages")


class Deployed(nn.Module):
    """A trained classifier as a plain function of standardised samples: what an Adapter takes.

    Args:
        method: a trained method with `logits`; copied, without its views and its trainer.
    """

    def __init__(self, method: Method) -> None:
        super().__init__()
        self.method = copy.deepcopy(method, {id(method.views): Views(), id(method._trainer): None}).eval()

    def forward(self, x: Tensor, length: Tensor | None = None) -> Tensor:
        """Logits (B, K) of standardised samples (B, ...)."""
        batch: Batch = {"x": x, "index": torch.zeros(len(x), dtype=torch.int64, device=x.device)}
        return self.method.logits(batch if length is None else {**batch, "length": length})

    @property
    def backbone(self) -> nn.Module:
        """The network below the heads."""
        return self.method.encoder

    @property
    def head(self) -> nn.Module | None:
        """The classifier on top, where the method has one."""
        return getattr(self.method, "head", None)

    @property
    def pretext(self) -> nn.Module | None:
        """The self-supervised head, where the method has one."""
        return getattr(self.method, "pretext", None)


@dataclass
class Outcome:
    """What happened on one stream.

    Attributes:
        name: the shift.
        source: whether the source model was wrong, per sample in order.
        adapted: whether the adapter was wrong, each sample predicted once, when it arrived.
        used: samples learned from.
        skipped: updates that were refused or undone.
        seconds: time spent in the adapter.
        clean_after: error on clean data right after the stream.
    """

    name: str
    source: list[bool] = field(default_factory=list)
    adapted: list[bool] = field(default_factory=list)
    used: int = 0
    skipped: int = 0
    seconds: float = 0.0
    clean_after: float = float("nan")

    def row(self) -> dict[str, Any]:
        """The stream in one row of ``metrics.csv``; errors as shares."""
        source, adapted = float(np.mean(self.source)), float(np.mean(self.adapted))
        return {"shift": self.name, "n": len(self.source), "error_source": source, "error_adapted": adapted,
                "gain": source - adapted, "n_used": self.used, "skipped": self.skipped,
                "seconds": round(self.seconds, 3), "error_clean_after": self.clean_after}


def moved(batch: Batch, device: torch.device) -> tuple[Tensor, Tensor | None, Tensor]:
    """Samples, their lengths and classes, on a device."""
    return batch["x"].to(device), batch["length"].to(device) if "length" in batch else None, batch["y"].to(device)


def run_stream(adapter: Adapter, source: nn.Module, data: Any, run: Run, streams: ShiftStreams, name: str,
               tick: Callable[[int], None] = lambda n: None) -> Outcome:
    """Send one stream through the source model and through the adapter, each sample once."""
    outcome, device = Outcome(name), adapter.seen.device
    for batch in streams.batches(data, run.spec, name):
        x, length, y = moved(batch, device)
        with torch.no_grad():
            plain_logits = source(x, length)
        start = time.perf_counter()
        logits, report = adapter.predict_and_adapt(x, length, batch["index"].to(device))
        outcome.adapted += (logits.argmax(1) != y).tolist()
        outcome.seconds += time.perf_counter() - start
        outcome.source += (plain_logits.argmax(1) != y).tolist()
        outcome.used += report.n_used
        outcome.skipped += report.verdict == "skip"
        tick(len(x))
    return outcome


def clean_error(predict: Callable[..., Tensor], data: Any, run: Run, streams: ShiftStreams,
                device: torch.device) -> float:
    """Error on the uncorrupted stream, without learning."""
    wrong: list[bool] = []
    with torch.no_grad():
        for batch in streams.batches(data, run.spec, CLEAN):
            x, length, y = moved(batch, device)
            wrong += (predict(x, length).argmax(1) != y).tolist()
    return float(np.mean(wrong))


def run_streams(adapter: Adapter, source: nn.Module, data: Any, run: Run, streams: ShiftStreams) -> list[Outcome]:
    """All streams in order, with resets as configured and a check for forgetting before each reset and at the end."""
    names, device, outcomes = streams.names(run.spec.modality), adapter.seen.device, []
    count = len(data.parts[streams.part][1]) if streams.part in data.parts else 0
    with Progress(transient=True) as progress:
        task = progress.add_task("adapting", total=len(names) * min(count, streams.limit or count))
        for i, name in enumerate(names):
            progress.update(task, description=f"adapting to {name}")
            outcome = run_stream(adapter, source, data, run, streams, name, lambda n: progress.advance(task, n))
            if streams.reset == "each_shift" or i == len(names) - 1:
                outcome.clean_after = clean_error(adapter.predict, data, run, streams, device)
            outcomes.append(outcome)
            if streams.reset == "each_shift" and i < len(names) - 1:
                adapter.reset()
    return outcomes


def build_adapter(config: dict[str, Any], run: Run, device: torch.device) -> tuple[Adapter, Deployed]:
    """The adapter and the source model it starts from, on a device.

    Raises:
        ConfigError: the run predicts no classes, or the method cannot adapt it.
    """
    if run.method.tags.target != "class":
        raise ConfigError(f"checkpoint={run.folder}: {type(run.method).__name__} predicts no classes, and only "
                          "classifiers are adapted; train one with model=finetune init_from=RUN, or model=supervised")
    source = Deployed(run.method).to(device)
    with building("adapter"):
        factory = hydra.utils.instantiate(config["adapter"], _partial_=True, _convert_="all")
        takes = inspect.signature(factory.func).parameters
        offers = {"views": copy.deepcopy(run.method.views), "sample_shape": run.spec.shape}
        return factory(source, **{k: v for k, v in offers.items() if k in takes}).to(device), source


def calibrate(adapter: Adapter, data: Any, run: Run, streams: ShiftStreams) -> None:
    """Show an adapter that asks for it so many clean training samples, without labels, before it is deployed."""
    count = getattr(adapter, "calibration", 0)
    if not count:
        return
    clean, device = copy.copy(streams), adapter.seen.device
    clean.part, clean.limit = "train", count
    batches = (moved({"y": batch["index"], **batch}, device)[:2] for batch in clean.batches(data, run.spec, CLEAN))
    cast(Any, adapter).calibrate(batches)


def summarise(config: dict[str, Any], run: Run, data: Any, outcomes: list[Outcome], clean: float,
              seconds: float) -> Summary:
    """The summary, in the schema of training runs; errors are shares."""
    rows = [o.row() for o in outcomes]
    after = [o.clean_after for o in outcomes if o.clean_after == o.clean_after]
    shifted = [row for row in rows if row["shift"] != CLEAN] or rows
    means = ("error_adapted", "error_source", "gain")
    scores = {name: float(np.mean([row[name] for row in shifted])) for name in means}
    scores |= {"error_clean_before": clean, "error_clean_after": float(np.mean(after))}
    scores |= {f"error_adapted_{row['shift']}": row["error_adapted"] for row in rows}
    source = {"error": scores["error_source"]} | {f"error_{row['shift']}": row["error_source"] for row in rows}
    return {"method": name_of(config, "model"), "data": name_of(config, "data") if config["data"] else data_name(run),
            "modality": data.modality, "seed": config["seed"], "commit": commit(), "versions": versions(),
            "wall_seconds": round(seconds, 2),
            "samples_per_second": timed_rate(sum(row["n"] for row in rows), sum(o.seconds for o in outcomes)),
            "scores": flat(scores), "references": {"source": flat(source)}}


def data_name(run: Run) -> str:
    """Name of the data a run was trained on."""
    path = run.folder / "summary.json"
    return json.loads(path.read_text())["data"] if path.is_file() else run.config["data"]["_target_"].rsplit(".", 1)[-1]


def write_metrics(folder: Path, outcomes: list[Outcome]) -> None:
    """One row per shift in ``metrics.csv``."""
    rows = [o.row() for o in outcomes]
    with (folder / "metrics.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def draw_stream(path: Path, outcomes: list[Outcome]) -> None:
    """Error over the last samples along all streams, source beside adapted."""
    from matplotlib.figure import Figure

    wrong = {name: np.concatenate([getattr(o, name) for o in outcomes]).astype(float) for name in ("source", "adapted")}
    window = max(8, len(outcomes[0].source) // 6)
    figure = Figure(figsize=(max(6.0, 1.1 * len(outcomes)), 3.2), layout="constrained")
    axes = figure.subplots()
    for name, colour in (("source", "0.6"), ("adapted", "tab:blue")):
        sums = np.cumsum(np.concatenate([[0.0], wrong[name]]))
        stop = np.arange(1, len(sums))
        start = np.maximum(0, stop - window)
        axes.plot(stop, 100.0 * (sums[stop] - sums[start]) / (stop - start), color=colour, label=name)
    edge = 0
    for outcome in outcomes:
        axes.axvline(edge, color="0.9", zorder=0)
        axes.text(edge, 101, f" {outcome.name}", rotation=30, fontsize=7, va="bottom")
        edge += len(outcome.source)
    axes.set(xlabel="samples seen", ylabel=f"error of the last {window}, %", ylim=(0, 100), xlim=(0, edge))
    axes.legend(loc="upper right", fontsize=8)
    figure.savefig(path, dpi=110)


def draw_shifts(path: Path, data: Any, run: Run, streams: ShiftStreams, samples: int = 3) -> None:
    """A few samples under every shift: pictures, or lines over time."""
    from matplotlib.figure import Figure

    names = [CLEAN, *(n for n in streams.names(run.spec.modality) if n != CLEAN)]
    figure = Figure(figsize=(1.2 * len(names), 1.25 * samples + 0.3), layout="constrained")
    grid = figure.subplots(samples, len(names), squeeze=False)
    mean, std = run.method.views.mean.cpu(), run.method.views.std.cpu()
    for column, name in enumerate(names):
        x = (next(streams.batches(data, run.spec, name))["x"][:samples].cpu() * std + mean).numpy()
        for axes, sample in zip(grid[:, column], x, strict=False):
            if run.spec.modality == "images":
                axes.imshow(sample.transpose(1, 2, 0).clip(0, 1).squeeze(), cmap="gray", vmin=0, vmax=1)
            else:
                axes.plot(np.atleast_2d(sample).T, linewidth=0.5)
        grid[0, column].set_title(name, fontsize=7)
    for axes in grid.flat:
        axes.set_axis_off()
    figure.savefig(path, dpi=110)


def report(folder: Path, summary: Summary, outcomes: list[Outcome]) -> None:
    """The table that a user reads at the end, and where everything lies."""
    title = f"{summary['method']} on {summary['data']}, seed {summary['seed']}: error in %"
    table = Table(title=title, title_justify="left")
    for name in ("shift", "source", "adapted", "gain", "samples", "skipped", "clean after"):
        table.add_column(name, justify="left" if name == "shift" else "right", no_wrap=True)
    for row in (o.row() for o in outcomes):
        after = row["error_clean_after"]
        table.add_row(row["shift"], *(f"{100 * row[k]:.1f}" for k in ("error_source", "error_adapted", "gain")),
                      str(row["n"]), str(row["skipped"]), f"{100 * after:.1f}" if after == after else "")
    scores = summary["scores"]
    table.add_section()
    means = (scores[k] for k in ("error_source", "error_adapted", "gain"))
    table.add_row("mean of shifts", *(f"{100 * mean:.1f}" for mean in means), "", "",
                  f"{100 * scores['error_clean_after']:.1f}")
    console = Console()
    console.print(table)
    before, after = (100 * scores[f"error_clean_{when}"] for when in ("before", "after"))
    lines = [f"clean error {before:.1f} % before, {after:.1f} % after",
             f"{summary['wall_seconds']:.0f} s in all, {summary['samples_per_second']:.0f} samples/s in the adapter",
             f"adapted   {folder / 'adapter.pt'}", f"metrics   {folder / 'metrics.csv'}",
             f"pictures  {folder / 'pictures'}: shifts.png, stream.png", f"summary   {folder / 'summary.json'}"]
    console.print(Panel("\n".join(lines), title=str(folder), title_align="left"), soft_wrap=True)


def deploy(cfg: DictConfig, folder: Path) -> None:
    """Load a run, adapt it along the streams, report."""
    started = time.perf_counter()
    if not cfg.adapter:
        raise ConfigError(f"model={cfg.name} is trained by train.py and does not adapt; choose model=tent or "
                          "model=ttt")
    refuse_scripted(cfg)
    if not cfg.checkpoint:
        raise ConfigError("checkpoint is missing; give the folder of a trained classifier: checkpoint=runs/...")
    run = load_run(cfg.checkpoint)
    cfg.seed = run.config["seed"] if cfg.seed is None else cfg.seed
    cfg.stream.seed = cfg.seed if cfg.stream.seed is None else cfg.stream.seed
    config = plain(cfg)
    validate({k: v for k, v in config.items() if k not in ("model", "trainer")}, GROUPS, config["trusted_packages"])
    data = build_data(config if config["data"] else {**config, "data": run.config["data"]}, None)
    if (data.modality, data.spec.num_classes) != (run.spec.modality, run.spec.num_classes):
        raise ConfigError(f"data: {data.spec.num_classes} classes of {data.modality}, but the checkpoint was trained "
                          f"on {run.spec.num_classes} classes of {run.spec.modality}")
    use_gpu = config["trainer"]["accelerator"] in ("gpu", "cuda", "auto") and torch.cuda.is_available()
    device = torch.device("cuda" if use_gpu else "cpu")
    with building("stream"):
        streams: ShiftStreams = hydra.utils.instantiate(config["stream"], _convert_="all")
        streams.names(run.spec.modality)
    adapter, source = build_adapter(config, run, device)
    OmegaConf.save(OmegaConf.create(config), folder / "config.yaml")
    clean = clean_error(source, data, run, streams, device)
    calibrate(adapter, data, run, streams)
    outcomes = run_streams(adapter, source, data, run, streams)
    adapter.save(folder / "adapter.pt")
    (folder / "pictures").mkdir(exist_ok=True)
    draw_stream(folder / "pictures" / "stream.png", outcomes)
    draw_shifts(folder / "pictures" / "shifts.png", data, run, streams)
    write_metrics(folder, outcomes)
    summary = summarise(config, run, data, outcomes, clean, time.perf_counter() - started)
    write_summary(folder, summary)
    report(folder, summary, outcomes)
