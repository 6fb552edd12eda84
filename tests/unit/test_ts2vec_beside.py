"""The authors' TS2Vec beside ours: what their code is given, and what is refused."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from ssl_suite.config import ConfigError
from tests.conftest import ROOT
from tests.runs import run, series

sys.path.insert(0, str(ROOT / "scripts"))
import ts2vec_beside


class Authors:
    """Stands for their class: says what it was given, encodes a series as its mean over the steps it has."""

    def __init__(self, channels: int, **settings: int) -> None:
        self.channels, self.settings = channels, settings

    def fit(self, x: np.ndarray, n_iters: int) -> None:
        assert x.shape[2] == self.channels == 2
        assert n_iters == 3
        assert self.settings["hidden_dims"] == 4
        assert self.settings["batch_size"] == 8
        assert abs(np.nanmean(x)) < 0.2  # standardised

    def encode(self, x: np.ndarray, encoding_window: str) -> np.ndarray:
        assert encoding_window == "full_series"
        return np.nanmean(x, axis=1)


TS2VEC = ("model=ts2vec", "data=series_arrays", "data.steps_per_epoch=3", "evaluation.svm=true", "evaluation.probes=true",
          "backbones.features.width=4", "backbones.features.depth=2", "backbones.features.norm=none", "callbacks.pictures=null")


def test_a_run_stands_beside_the_authors(tmp_path: Path) -> None:
    finished = run(tmp_path / "run", *TS2VEC, f"data.path={series(tmp_path)}")
    row = ts2vec_beside.compared(finished, SimpleNamespace(TS2Vec=Authors))
    assert row["seed"] == 0
    assert all(0.0 <= row[name] <= 1.0 for name in ("ours", "authors", "untrained"))
    with pytest.raises(ConfigError, match="holds no finished run"):
        ts2vec_beside.compared(tmp_path, SimpleNamespace(TS2Vec=Authors))


def test_series_end_in_nan(tmp_path: Path) -> None:
    path = tmp_path / "ragged.npz"
    rng = np.random.default_rng(0)
    np.savez(path, series=rng.normal(size=(12, 2, 10)).astype(np.float32), lengths=np.arange(12) % 4 + 7, labels=np.arange(12) % 3)
    finished = run(tmp_path / "run", *TS2VEC, f"data.path={path}", "data.batch_size=4")
    spec = ts2vec_beside.load_exported(finished)[1]
    data = ts2vec_beside.data_for(None, [], spec, finished)
    data.views.standardise(spec)
    x = ts2vec_beside.series(data, "train")
    source, rows = data.parts["train"]
    assert np.isfinite(x).all(2).sum(1).tolist() == source.lengths[rows].tolist()
