"""Forecast a series from the frozen features of a run on it, beside an untrained encoder and the raw values.

    python train.py model=ts2vec data=series_table data.path=ETTh1.csv data.val_fraction=0.165327 data.test_fraction=0.338691
    python scripts/forecast.py RUN --rows 8640 2880 2880 --csv forecast.csv

The protocol of TS2Vec (arXiv 2106.10466): the features of a row are the encoder's last token of the ``--context`` rows that end
with it, so that no row sees what follows; a ridge regression for each horizon predicts all values up to it, its penalty chosen on
the validation rows; errors are of values standardised by the training rows. ``--rows`` are the training, validation and test rows,
by default the run's own; those above are the paper's for ETTh1. ``raw`` is the same regression on the values of the context.

Deviations: the calendar (hour, weekday, ...), which the official code appends as channels, is left out.
"""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import nn

from ssl_suite.batch import Spec
from ssl_suite.config import ConfigError
from ssl_suite.data.series import WindowSource
from ssl_suite.functional.forecasting import pairs, ridge_forecast
from ssl_suite.io.weights import read_description
from ssl_suite.programs import data_for, guarded, parser, write_rows
from ssl_suite.run import build_backbone, load_exported
from ssl_suite.summary import commit, read_summary

HORIZONS = (24, 48, 168, 336, 720)


def contexts(values: np.ndarray, size: int) -> np.ndarray:
    """The ``size`` rows that end with each row of a series (C, rows), zeros before the first, (rows, C, size)."""
    padded = np.pad(values, ((0, 0), (size - 1, 0)))
    return np.lib.stride_tricks.sliding_window_view(padded, size, axis=1).swapaxes(0, 1)


@torch.no_grad()
def causal_features(net: nn.Module, values: np.ndarray, size: int, title: str, batch: int = 256) -> np.ndarray:
    """The encoder's last token of the context of each row, (rows, D); values (C, rows) as the encoder takes them."""
    windows = contexts(values, size)
    pieces = [net.tokens(torch.from_numpy(windows[i : i + batch].copy()))[:, -1].numpy()  # type: ignore[operator]
              for i in track(range(0, len(windows), batch), description=title, transient=True)]
    return np.concatenate(pieces)


def stretches(rows: list[int] | None, data: Any) -> tuple[tuple[int, int], ...]:
    """First row of the training, validation and test rows, and the row after the last of each.

    Args:
        rows: how many each has; None takes the shares of the data.
        data: a data module over one long series, set up.

    Raises:
        ConfigError: there are not so many rows, or the run was trained on rows that are to be forecast.
    """
    source = data.parts["train"][0]
    if not isinstance(source, WindowSource):
        raise ConfigError("forecasting needs a run on one long series: data=series_table")
    total, seen = source.values.shape[1], int(source.starts.max()) + source.window
    if rows is None:
        ends = [0, *(round(total * (1 - share)) for share in (data.val_fraction + data.test_fraction, data.test_fraction)), total]
    else:
        ends = np.cumsum([0, *rows]).tolist()
    if ends[-1] > total:
        raise ConfigError(f"--rows {' '.join(map(str, rows or []))} are more than the {total} rows of the series")
    if seen > ends[1]:
        raise ConfigError(f"the run was trained on {seen} rows, more than the first {ends[1]}: it has seen what is to be forecast; "
                          "set data.val_fraction and data.test_fraction of the run, or --rows")
    return tuple(itertools.pairwise(ends))


def encoders(run: Path, spec: Spec, values: np.ndarray, size: int, seed: int) -> dict[str, np.ndarray]:
    """Features (rows, D) of a series (C, rows) by a run's encoder, by the same backbone drawn from a seed, and without any."""
    mean, std = (np.array(numbers, np.float32)[:, None] for numbers in (spec.mean, spec.std))
    inputs = (values - mean) / std
    L.seed_everything(seed, verbose=False)
    untrained = build_backbone(read_description(run / "backbone.safetensors")[1], spec).eval()
    nets = {"this run": load_exported(run)[0], "untrained": untrained}
    return {**{name: causal_features(net, inputs, size, f"encoding: {name}") for name, net in nets.items()},
            "raw": contexts(inputs, size).reshape(values.shape[1], -1)}


def main() -> None:
    """Entry point."""
    arguments = parser(__doc__ or "")
    arguments.add_argument("run", type=Path, help="run folder, of data=series_table")
    arguments.add_argument("--rows", type=int, nargs=3, metavar=("TRAIN", "VAL", "TEST"), help="rows of each part")
    arguments.add_argument("--horizons", type=int, nargs="+", default=list(HORIZONS))
    arguments.add_argument("--context", type=int, default=201, help="rows that a feature may see (default: 201, as the paper)")
    arguments.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="overrides of the run's data: data.path=...")
    arguments.add_argument("--csv", type=Path, help="write a row for each encoder and horizon")
    given = arguments.parse_args()
    spec, seed = read_description(given.run / "backbone.safetensors")[0], read_summary(given.run)["seed"]
    data = data_for(None, given.set, spec, given.run)
    parts = stretches(given.rows, data)
    values: np.ndarray = data.parts["train"][0].values[:, : parts[-1][1]]
    known = values[:, : parts[0][1]].astype(np.float64)
    targets = ((values - known.mean(1, keepdims=True)) / known.std(1, keepdims=True)).T
    table, rows = Table("", *(f"{h}: MSE  MAE" for h in given.horizons)), []
    for name, features in encoders(given.run, spec, values, given.context, seed).items():
        found = [ridge_forecast(*(pairs(features, targets, part, horizon) for part in parts)) for horizon in given.horizons]
        table.add_row(name, *(f"{f.mse:.3f}  {f.mae:.3f}" for f in found))
        rows += [{"encoder": name, "horizon": h, **vars(f), "seed": seed, "commit": commit()}
                 for h, f in zip(given.horizons, found, strict=True)]
    Console().print(table)
    if given.csv:
        write_rows(given.csv, rows)


if __name__ == "__main__":
    guarded(main)
