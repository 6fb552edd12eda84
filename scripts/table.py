"""Run a table of experiments: rows x seeds, each cell one run of train.py or adapt.py, taken up again where it stopped.

    python scripts/table.py                                                  # the tables there are
    python scripts/table.py mnist_few_labels --set data.path=mnist.npz       # 3 seeds, two cells at a time
    python scripts/table.py mnist_few_labels --seeds 0 --only fixmatch
    python scripts/table.py few_labels --data FOLDER --only "*_4_random_*"

A table is a file ``scripts/tables/NAME.yaml``: overrides ``common`` to all rows, ``rows`` of name -> overrides, and the
``metrics`` to print. A ``grid`` of axes, each of name -> overrides, adds a row for every way of taking one entry from each
axis. ``{row}`` in an override stands for the run folder of that row with the same seed, ``{data}`` for the folder of data
files, and ``<axis>`` for the entry taken from an axis. Cells are finished when their summary.json exists. The rows with mean
and spread go to the terminal and, with every run's command and commit, to ``docs/tables/NAME.csv``.
"""

from __future__ import annotations

import fnmatch
import itertools
import shlex
import statistics
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from ssl_suite.config import ConfigError
from ssl_suite.programs import finished_run, guarded, parser, planned, trained_run, write_rows
from ssl_suite.summary import read_summary

ROOT = Path(__file__).resolve().parents[1]
TABLES = ROOT / "scripts" / "tables"


def flat(overrides: list[Any]) -> list[str]:
    """Overrides in one list; YAML's anchors put lists into lists."""
    return [o for part in overrides for o in (part if isinstance(part, list) else [part])]


def rows_of(table: dict[str, Any]) -> dict[str, Any]:
    """Name -> overrides of each row, those written out first, then those of the grid."""
    axes = table.get("grid", {})
    rows = {name: entry if isinstance(entry, dict) else flat(entry) for name, entry in table.get("rows", {}).items()}
    for taken in itertools.product(*axes.values()) if axes else ():
        overrides = [o for axis, entry in zip(axes.values(), taken, strict=True) for o in flat(axis[entry])]
        for axis, entry in zip(axes, taken, strict=True):
            overrides = [o.replace(f"<{axis}>", str(entry)) for o in overrides]
        rows["_".join(map(str, taken))] = overrides
    return rows


def command(table: dict[str, Any], row: str, seed: int, folders: Path, extra: list[str]) -> list[str]:
    """The command of one cell."""
    entry = table["rows"][row]
    program, overrides = ("adapt.py", entry["adapt"]) if isinstance(entry, dict) else ("train.py", entry)
    places = {name: str(folders / f"{name}-{seed}") for name in table["rows"]} | {"data": table["data"]}
    given = [o.format(**places) if o.count("{") and "{_" not in o and ":" not in o else o for o in [*table["common"], *overrides]]
    return [program, *given, *extra, f"seed={seed}", f"hydra.run.dir={folders / f'{row}-{seed}'}"]


def run_seed(table: dict[str, Any], seed: int, rows: list[str], folders: Path, extra: list[str], tick: Any) -> None:
    """All rows of one seed, one after the other; finished ones are passed over, a stopped training goes on."""
    for row in rows:
        folder = folders / f"{row}-{seed}"
        program, *arguments = command(table, row, seed, folders, extra)
        if program == "train.py":
            trained_run(folder, arguments[:-1])  # it names the folder itself
        elif not (folder / "summary.json").is_file():
            finished_run([str(ROOT / program), *arguments], folder)
        tick()


def collect(table: dict[str, Any], rows: list[str], seeds: list[int], folders: Path, extra: list[str]) -> list[dict[str, Any]]:
    """One record of all scores for each cell and for each of its references."""
    records = []
    for row in rows:
        for seed in seeds:
            summary = read_summary(folders / f"{row}-{seed}")
            line = shlex.join(command({**table, "data": "DATA"}, row, seed, Path("RUNS"), [o for o in extra if "path=" not in o]))
            shared = {"commit": summary["commit"], "seconds": summary["wall_seconds"],
                      "samples_per_second": summary["samples_per_second"], "torch": summary["versions"]["torch"],
                      "command": f"python {line}"}
            records.append({"row": row, "seed": seed, **summary["scores"], **shared})
            records += [{"row": f"{row} ({name})", "seed": seed, **scores, **shared}
                        for name, scores in summary["references"].items() if scores]
    return records


def show(name: str, metrics: list[str], records: list[dict[str, Any]]) -> None:
    """Print mean and standard deviation over the seeds."""
    printed = Table("", *metrics, title=name)
    for row in dict.fromkeys(r["row"] for r in records):
        cells = []
        for metric in metrics:
            values = [float(r[metric]) for r in records if r["row"] == row and metric in r]
            spread = statistics.stdev(values) if len(values) > 1 else 0.0
            cells.append(f"{statistics.mean(values):.3f} ± {spread:.3f}" if values else "")
        if any(cells):
            printed.add_row(row, *cells)
    Console().print(printed)


def main() -> None:
    """Entry point."""
    arguments = parser(__doc__ or "")
    arguments.add_argument("table", nargs="?", help="without one, lists them")
    arguments.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="overrides for every cell")
    arguments.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    arguments.add_argument("--only", nargs="*", default=["*"], help="these rows only; * and ? stand for anything")
    arguments.add_argument("--data", default="data", help="folder of data files, for tables that name several (default: data)")
    arguments.add_argument("--jobs", type=int, default=2, help="cells at a time (default: 2)")
    arguments.add_argument("--runs", type=Path, default=ROOT / "runs" / "tables", help="folder of the runs (default: runs/tables)")
    given = arguments.parse_args()
    table = planned(TABLES, given.table, "table")
    if table is None:
        return
    table |= {"rows": rows_of(table), "data": str(Path(given.data).resolve())}
    rows = [row for row in table["rows"] if any(fnmatch.fnmatch(row, pattern) for pattern in given.only)]
    if not rows:
        raise ConfigError(f"no row of {given.table} matches {' '.join(given.only)}; there are {', '.join(table['rows'])}")
    folders = given.runs.resolve() / given.table
    with Progress() as progress, ThreadPoolExecutor(given.jobs) as pool:
        task = progress.add_task(given.table, total=len(rows) * len(given.seeds))
        jobs = [pool.submit(run_seed, table, seed, rows, folders, given.set, lambda: progress.advance(task))
                for seed in given.seeds]
        for job in jobs:
            job.result()
    records = collect(table, rows, given.seeds, folders, given.set)
    show(given.table, table["metrics"], records)
    out = ROOT / "docs" / "tables" / f"{given.table}.csv"
    write_rows(out, records)


if __name__ == "__main__":
    guarded(main)
