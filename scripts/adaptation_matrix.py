"""A matrix of adaptation: trained networks x kinds of stream x methods, each method alone and under the collapse guard.

    python scripts/adaptation_matrix.py                                                  # the matrices there are
    python scripts/adaptation_matrix.py cifar10 --set data.path=cifar10_jpeg.npz         # 3 seeds, two cells at a time
    python scripts/adaptation_matrix.py cifar10 --seeds 0 --sources resnet --streams sorted --methods tent lame

A matrix is a file ``scripts/matrices/NAME.yaml``. Its networks are trained first, where their runs are not there yet: with seed 0,
or with ``per_seed: true`` one for each seed. A cell is one network on one stream with one seed (which draws order and shifts);
finished cells are passed over. All methods meet the same batches. A method first goes under the guard; where this never stepped
in and told it nothing, its figures are those of the method alone too, since a guard that does nothing changes nothing. The rows
with mean and spread go to the terminal, those of every cell to ``docs/tables/matrix_NAME.csv``. Errors in %.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from torch import Tensor, nn

from ssl_suite.adapter import Adapter
from ssl_suite.config import ConfigError
from ssl_suite.data.streams import CLEAN, ShiftStreams
from ssl_suite.deploy import Trained, build_adapter, from_run
from ssl_suite.programs import guarded, parser, planned, write_rows
from ssl_suite.run import load_run
from ssl_suite.scoring import mistakes
from ssl_suite.serving.guard import CollapseGuard
from ssl_suite.serving.stream import Stream
from ssl_suite.streaming import Outcome, calibrate, clean_error
from ssl_suite.summary import commit

ROOT = Path(__file__).resolve().parents[1]
CPU = torch.device("cpu")
INTERVENED = ("aside", "rollback", "reset", "disable")


class Remembering(nn.Module):
    """A source model that runs once on a batch, however many ask."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model, self.last = model, (torch.empty(0), torch.empty(0))

    def forward(self, x: Tensor, length: Tensor | None = None) -> Tensor:
        if x is not self.last[0]:
            self.last = x, self.model(x) if length is None else self.model(x, length)
        return self.last[1]


def built(matrix: dict[str, Any], source: str, method: str, trained: Trained, streams: ShiftStreams,
          bold: bool) -> tuple[Adapter, nn.Module]:
    """One method of the matrix, calibrated where it asks for it, and the source model; a bold one trusts any batch."""
    entry = {**matrix["methods"][method], **matrix["sources"][source].get("settings", {}).get(method, {})}
    config: Any = OmegaConf.to_container(OmegaConf.load(ROOT / "configs" / "model" / f"{entry.pop('model', method)}.yaml"))
    config = {**config["adapter"], **matrix["common"], **entry}
    if bold and "min_batch" in config:
        config["min_batch"] = 1
    adapter, model = build_adapter({"adapter": config}, trained, CPU)
    calibrate(adapter, trained.data, trained.spec, streams, CPU)
    return adapter, model


def pass_through(answering: dict[str, Stream], trained: Trained, streams: ShiftStreams) -> dict[str, list[Outcome]]:
    """Send the whole stream through all, batch by batch."""
    outcomes: dict[str, list[Outcome]] = {name: [] for name in answering}
    segments, updates = streams.segments(trained.data, trained.spec), Counter[str]()
    for segment in segments:
        for found in outcomes.values():
            found.append(Outcome(segment))
        for batch in streams.read(trained.data, trained.spec, segment):
            for name, stream in answering.items():
                outcome = outcomes[name][-1]
                outcome.source += mistakes(stream.by_source(batch["x"], batch.get("length")), batch)
                logits, report = stream.predict_and_adapt(batch["x"], batch.get("length"), batch["index"])
                outcome.adapted += mistakes(logits, batch)
                outcome.adapted_ms.append(report.ms)
                outcome.used += report.n_used
                outcome.verdicts["aside" if report.reason.startswith("neighbours") else report.verdict] += 1
                updates[name] += report.verdict == "ok"
                if updates[name] == streams.reset:
                    stream.adapter.reset()
                    updates[name] = 0
        if streams.reset == "each_shift" and segment is not segments[-1]:
            for stream in answering.values():
                stream.adapter.reset()
    return outcomes


def run_cell(matrix: dict[str, Any], source_name: str, run_folder: Path, stream_name: str, arguments: dict[str, Any], seed: int,
             methods: list[str], out: Path) -> None:
    """The methods that the cell's file lacks, on one stream; adds their records to it."""
    records: list[dict[str, Any]] = json.loads(out.read_text()) if out.is_file() else []
    methods = [m for m in methods if m not in {r["method"] for r in records}]
    if not methods:
        return
    torch.set_num_threads(1)
    run = load_run(run_folder)
    trained = from_run(dict.fromkeys(("data", "weights")), run)
    streams = ShiftStreams(**{"batch_size": 64, **arguments}, seed=seed)
    single, shared = streams.batch_size == 1, {"source": source_name, "stream": stream_name, "seed": seed, "commit": commit()}
    alone = list(methods)
    for guard in (True, False):
        bold = single and not guard
        pairs = {m: built(matrix, source_name, m, trained, streams, bold) for m in (methods if guard else alone)}
        if not pairs:
            break
        source = Remembering(next(iter(pairs.values()))[1])
        answering = {m: Stream(adapter, source, guard=CollapseGuard() if guard else None) for m, (adapter, _) in pairs.items()}
        for method, outcomes in pass_through(answering, trained, streams).items():
            after = 100.0 * clean_error(answering[method].predict, trained.data, trained.spec, streams, CPU)
            record = {**shared, "method": method, **summed(outcomes), "error_clean_after": after}
            records.append({**record, "guard": guard})
            if guard and not single and answering[method].adapter.assumes != "told" and not any(record[v] for v in INTERVENED):
                alone.remove(method)
                records.append({**record, "guard": False})
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = out.with_suffix(".tmp")
    temporary.write_text(json.dumps(records, indent=1))
    temporary.replace(out)


def summed(outcomes: Iterable[Outcome]) -> dict[str, Any]:
    """One record of all segments; clean ones, and all rounds but the last, are left out of the errors."""
    outcomes = list(outcomes)
    last = [o for o in outcomes if o.segment.round == outcomes[-1].segment.round]
    shifted = [o for o in last if o.segment.name != CLEAN] or last
    verdicts = {v: sum(o.verdicts[v] for o in outcomes) for v in ("ok", "skip", *INTERVENED)}
    return {"n": sum(len(o.adapted) for o in shifted),
            "error_source": 100.0 * statistics.mean(w for o in shifted for w in o.source),
            "error": 100.0 * statistics.mean(w for o in shifted for w in o.adapted),
            "used": sum(o.used for o in outcomes), **verdicts,
            "ms": round(statistics.median(ms for o in outcomes for ms in o.adapted_ms), 2)}


def train(overrides: list[str], folder: Path, seed: int, extra: list[str]) -> None:
    """Train a source network, where its run is not there yet."""
    if (folder / "summary.json").is_file():
        return
    command = [sys.executable, "train.py", *overrides, *extra, f"seed={seed}", f"hydra.run.dir={folder}"]
    Console().print(f"training {folder.name}: {' '.join(command[1:])}")
    if subprocess.run(command, cwd=ROOT).returncode:
        raise ConfigError(f"the network {folder.name} could not be trained; see above")


def show(matrix_name: str, records: list[dict[str, Any]]) -> None:
    """Print, for every network, mean and standard deviation over the seeds: error alone, and under the guard."""
    for source in dict.fromkeys(r["source"] for r in records):
        mine = [r for r in records if r["source"] == source]
        streams = list(dict.fromkeys(r["stream"] for r in mine))
        printed = Table("error in %", *streams, title=f"{matrix_name}, {source}: alone / under the guard", title_justify="left")
        rows: dict[str, list[str]] = {"source": [], **{r["method"]: [] for r in mine}}
        for stream in streams:
            here = [r for r in mine if r["stream"] == stream]
            for row, cells in rows.items():
                pair = [[r["error_source" if row == "source" else "error"] for r in here
                         if r["guard"] is guard and row in ("source", r["method"])] for guard in (False, True)]
                cells.append(" / ".join(spread(values) for values in (pair[:1] if row == "source" else pair) if values))
        for row, cells in rows.items():
            printed.add_row(row, *cells)
        Console().print(printed)


def spread(values: list[float]) -> str:
    """Mean ± standard deviation."""
    return f"{statistics.mean(values):.1f}" + (f"±{statistics.stdev(values):.1f}" if len(values) > 1 else "")


def main() -> None:
    """Entry point."""
    arguments = parser(__doc__ or "")
    arguments.add_argument("matrix", nargs="?", help="without one, lists them")
    arguments.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="overrides for training the networks")
    arguments.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    for part in ("sources", "streams", "methods"):
        arguments.add_argument(f"--{part}", nargs="*", help="these only")
    arguments.add_argument("--jobs", type=int, default=2, help="cells at a time (default: 2)")
    arguments.add_argument("--runs", type=Path, default=ROOT / "runs" / "matrices", help="default: runs/matrices")
    given = arguments.parse_args()
    matrix, runs = planned(ROOT / "scripts" / "matrices", given.matrix, "matrix"), given.runs.resolve() / str(given.matrix)
    if matrix is None:
        return
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    files = []
    with Progress() as progress, ProcessPoolExecutor(given.jobs, mp_context=get_context("spawn")) as pool:
        jobs = []
        for source, seed in product(given.sources or matrix["sources"], given.seeds):
            entry = matrix["sources"][source]
            run = runs / (f"{source}-{seed}" if matrix.get("per_seed") else source)
            train([*matrix["train"], *entry["train"]], run, seed if matrix.get("per_seed") else 0, given.set)
            for stream in given.streams or entry.get("streams", matrix["streams"]):
                chosen = [m for m in entry.get("methods", matrix["methods"]) if not given.methods or m in given.methods]
                settings = {**matrix["streams"][stream], **entry.get("limits", {}).get(stream, {})}
                takes = settings.pop("methods", chosen)
                chosen = [m for m in chosen if m in takes and stream in matrix.get("only", {}).get(m, [stream])]
                files.append(runs / f"{source}-{stream}-{seed}.json")
                jobs.append(pool.submit(run_cell, matrix, source, run, stream, settings, seed, chosen, files[-1]))
        task = progress.add_task(given.matrix, total=len(jobs))
        for job in jobs:
            job.result()
            progress.advance(task)
    records = [r for file in files for r in json.loads(file.read_text())]
    show(given.matrix, records)
    out = ROOT / "docs" / "tables" / f"matrix_{given.matrix}.csv"
    write_rows(out, records)


if __name__ == "__main__":
    guarded(main)
