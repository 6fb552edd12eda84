"""Is our TS2Vec as good as its authors'? Their code on the data of finished runs of ours, as many steps, the same probe.

    python scripts/table.py ucr_pretraining --data FOLDER --only "*_ts2vec"
    python scripts/ts2vec_beside.py runs/tables/ucr_pretraining/*_ts2vec-* --peer FOLDER --csv ts2vec_beside.csv

FOLDER is a checkout of the authors' repository (zhihanyue/ts2vec; arXiv 2106.10466). It trains a net of the run's width, depth
and features on the run's training series, standardised as ours are and padded with NaN, with the run's batch and rate for as many
steps, from the run's seed. Both encodings of whole series go through the RBF support vector machine of the archives. A row tells
the accuracy of both; the last line tells the mean difference and its spread.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from omegaconf import OmegaConf
from rich.console import Console
from rich.progress import track
from rich.table import Table

from ssl_suite.config import ConfigError
from ssl_suite.evaluation import classes
from ssl_suite.functional.archive import svm_probe
from ssl_suite.programs import data_for, guarded, parser, write_rows
from ssl_suite.run import load_exported
from ssl_suite.summary import commit, read_summary


def series(data: Any, part: str) -> np.ndarray:
    """Series of a part, standardised, (N, T, C) float32 with NaN behind their ends, all as long as the longest of the data."""
    rows: list[torch.Tensor] = []
    for batch in data.clean_loader(part, shard=False):
        (x,) = data.views(batch, "clean")
        if "length" in batch:
            x = x.masked_fill(torch.arange(x.shape[2]) >= batch["length"][:, None, None], float("nan"))
        rows += [torch.nn.functional.pad(row, (0, data.spec.shape[-1] - row.shape[-1]), value=float("nan")) for row in x]
    return torch.stack(rows).transpose(1, 2).numpy()


def authors_encodings(config: Any, module: Any, train: np.ndarray, test: np.ndarray) -> list[np.ndarray]:
    """Encodings (N, D) of whole series, training and test, by the authors' code, trained as long as the run was."""
    net, trainer = config.backbones.features, config.trainer
    steps = trainer.max_epochs * config.data.steps_per_epoch
    model = module.TS2Vec(train.shape[2], output_dims=net.num_features, hidden_dims=net.width, depth=net.depth, device="cpu",
                          lr=config.optimizer.lr, batch_size=min(config.data.batch_size, len(train)))
    model.fit(train, n_iters=steps)
    return [model.encode(x, encoding_window="full_series") for x in (train, test)]


def compared(run: Path, module: Any) -> dict[str, Any]:
    """Accuracy of a run and of the authors' code on its data.

    Raises:
        ConfigError: the folder holds no finished run of TS2Vec whose epochs have a given length.
    """
    summary, config = read_summary(run), OmegaConf.load(run / "config.yaml")
    if not config.model._target_.endswith(".TS2Vec") or "svm" not in summary["scores"] or not config.data.steps_per_epoch:
        raise ConfigError(f"{run} must be a run of model=ts2vec with evaluation.svm=true and data.steps_per_epoch")
    spec = load_exported(run)[1]
    data = data_for(None, [], spec, run)
    data.views.standardise(spec)
    L.seed_everything(summary["seed"], verbose=False)
    train, test = series(data, "train"), series(data, "test")
    train, test = authors_encodings(config, module, train, test)
    score = svm_probe(train, classes(data, "train"), test, classes(data, "test"))
    return {"run": run.name, "seed": summary["seed"], "ours": summary["scores"]["svm"], "authors": round(score, 6),
            "untrained": summary["references"]["untrained"]["svm"], "commit": commit()}


def main() -> None:
    """Entry point."""
    arguments = parser(__doc__ or "")
    arguments.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="run folders")
    arguments.add_argument("--peer", type=Path, required=True, metavar="FOLDER", help="a checkout of the authors' repository")
    arguments.add_argument("--csv", type=Path, help="write the table")
    given = arguments.parse_args()
    if not (given.peer / "ts2vec.py").is_file():
        raise ConfigError(f"--peer {given.peer} holds no ts2vec.py; give a checkout of zhihanyue/ts2vec")
    sys.path.insert(0, str(given.peer))
    module = importlib.import_module("ts2vec")
    rows = []
    for run in track(given.runs, transient=True):
        rows.append(compared(run, module))
        if given.csv:
            write_rows(given.csv, rows)
    table = Table("run", "ours", "authors", "untrained")
    for row in rows:
        table.add_row(row["run"], *(f"{row[name]:.3f}" for name in ("ours", "authors", "untrained")))
    Console().print(table)
    gap = 100.0 * np.array([row["ours"] - row["authors"] for row in rows])
    Console().print(f"ours less the authors': {gap.mean():+.1f} points on average, from {gap.min():+.1f} to {gap.max():+.1f}")


if __name__ == "__main__":
    guarded(main)
