"""Forecasts from frozen features: causal, and on rows that the encoder has not seen."""

from __future__ import annotations

import csv
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from ssl_suite.backbones.series import SeriesConvNet
from ssl_suite.batch import Spec
from ssl_suite.config import ConfigError
from tests.conftest import ROOT
from tests.runs import run

sys.path.insert(0, str(ROOT / "scripts"))
import forecast


def test_a_row_sees_nothing_that_follows_it() -> None:
    values = np.random.default_rng(0).normal(size=(2, 40)).astype(np.float32)
    assert np.array_equal(forecast.contexts(values, 5)[10], values[:, 6:11])
    assert np.array_equal(forecast.contexts(values, 5)[1], np.pad(values[:, :2], ((0, 0), (3, 0))))
    torch.manual_seed(0)
    net = SeriesConvNet(Spec("series", (2, 8)), width=8, depth=2, num_features=6, norm="none").eval()
    before = forecast.causal_features(net, values, 8, "")
    assert before.shape == (40, 6)
    values[:, 25:] += 1.0
    after = forecast.causal_features(net, values, 8, "")
    assert np.array_equal(before[:25], after[:25])
    assert not np.allclose(before[25], after[25])


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("pandas", reason="pandas is not installed")
    folder, steps = tmp_path_factory.mktemp("forecast"), np.arange(400)
    noise = np.random.default_rng(1).normal(0, 0.1, (400, 2))
    waves = np.stack([np.sin(steps / 3), 5 + 2 * np.cos(steps / 5)], axis=1) + noise
    np.savetxt(folder / "table.csv", waves, delimiter=",", header="a,b", comments="")
    return run(folder / "run", "model=ts2vec", "data=series_table", f"data.path={folder / 'table.csv'}", "data.window=32",
               "data.stride=8", "data.val_fraction=0.2", "backbone=series_convnet", "backbone.norm=none", "backbone.width=8",
               "backbone.depth=2", "backbone.num_features=8")


def test_a_run_forecasts(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "forecast.csv"
    monkeypatch.setattr(sys, "argv", ["forecast.py", str(trained), "--horizons", "2", "8", "--context", "16", "--csv", str(out)])
    forecast.main()
    with out.open() as file:
        rows = {(row["encoder"], int(row["horizon"])): float(row["mse"]) for row in csv.DictReader(file)}
    assert rows.keys() == {(name, h) for name in ("this run", "untrained", "raw") for h in (2, 8)}
    assert rows["raw", 2] < 0.05, "waves follow from their last 16 values, up to the noise"
    assert all(0.0 < value < 1.5 for value in rows.values()), "about 1 is what the mean of the training rows gives"


@pytest.mark.parametrize(("rows", "said"), [(["100", "150", "150"], "trained on .* rows, more than the first 100"),
                                            (["300", "100", "100"], "more than the 400 rows")])
def test_rows_that_do_not_fit_are_refused(rows: list[str], said: str, trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["forecast.py", str(trained), "--rows", *rows])
    with pytest.raises(ConfigError, match=said):
        forecast.main()
