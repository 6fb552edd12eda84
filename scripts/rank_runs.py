"""Which run is best? Rank runs of one method by what needs no labels, and say how well that agrees with a score that does.

    python scripts/rank_runs.py RUN RUN RUN...                         # RankMe, alpha-ReQ, LiDAR
    python scripts/rank_runs.py RUNS/vicreg-*-0 --score probe_3shot --csv ranks.csv

RankMe and LiDAR count as better the larger they are, alpha-ReQ the nearer it is to 1. All are of the exported encoder on the run's
own data: RankMe and alpha-ReQ on training samples, LiDAR on views of test samples. Spearman's correlation with the score, which is
read from summary.json, is printed where three runs or more have it. Between methods the figures say little
(`ssl_suite.functional.spectrum`), so runs of several are refused.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table
from scipy.stats import spearmanr
from torch import Tensor

from ssl_suite.batch import Batch
from ssl_suite.config import ConfigError
from ssl_suite.evaluation import features, spectrum_scores, view_scores
from ssl_suite.programs import data_for, guarded, parser, write_rows
from ssl_suite.run import load_exported
from ssl_suite.summary import read_summary

FIGURES = ("rankme", "alpha_req", "lidar")
Row = dict[str, float | str]


def measured(run: Path, score: str) -> Row:
    """The figures of a run without labels, and its score where it has one.

    Raises:
        ConfigError: the folder holds no finished run.
    """
    summary = read_summary(run)
    backbone, spec = load_exported(run)
    data = data_for(None, [], spec, run)
    data.views.standardise(spec)

    def embed(batch: Batch, kind: str = "clean") -> Tensor:
        return backbone(data.views(batch, kind)[0], batch.get("length"))

    found = spectrum_scores(features(embed, data, "train", 5000)) | view_scores(lambda batch: embed(batch, "crop"), data)
    kept = {name: found[name] for name in FIGURES if name in found}
    return {"run": run.name, "method": summary["method"], **kept, **({score: s} if (s := summary["scores"].get(score)) else {})}


def goodness(name: str, values: np.ndarray) -> np.ndarray:
    """A figure turned so that more is better."""
    return -np.abs(values - 1.0) if name == "alpha_req" else values


def agreement(rows: list[Row], score: str) -> dict[str, float]:
    """Spearman's correlation of each figure's ranks with those of the score, over the runs that have both; for three or more."""
    found = {}
    for name in FIGURES:
        both = [(float(row[name]), float(row[score])) for row in rows if name in row and score in row]
        if len(both) >= 3:
            values, scores = np.array(both).T
            found[name] = float(spearmanr(goodness(name, values), scores).statistic)
    return found


def main() -> None:
    """Entry point."""
    arguments = parser(__doc__ or "")
    arguments.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="run folders")
    arguments.add_argument("--by", choices=FIGURES, default="rankme", help="what to order the table by (default: rankme)")
    arguments.add_argument("--score", default="probe_3shot", help="a score of summary.json to compare with (default: probe_3shot)")
    arguments.add_argument("--csv", type=Path, help="write the table")
    given = arguments.parse_args()
    rows = [measured(run, given.score) for run in given.runs]
    if len(methods := {str(row["method"]) for row in rows}) > 1:
        raise ConfigError(f"these are runs of {', '.join(sorted(methods))}; RankMe and its kin compare runs of one method only")
    rows.sort(key=lambda row: -float(goodness(given.by, np.array(float(row.get(given.by, -np.inf))))))
    columns = [*FIGURES, given.score]
    table = Table("run", *columns)
    for row in rows:
        table.add_row(str(row["run"]), *(f"{row[name]:.3f}" if name in row else "" for name in columns))
    if found := agreement(rows, given.score):
        table.add_section()
        table.add_row(f"Spearman with {given.score}", *(f"{found[name]:.2f}" if name in found else "" for name in FIGURES), "")
    Console().print(table)
    if given.csv:
        write_rows(given.csv, rows)


if __name__ == "__main__":
    guarded(main)
