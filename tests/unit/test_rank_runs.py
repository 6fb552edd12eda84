"""Runs ranked without labels."""

from __future__ import annotations

import csv
import sys
from pathlib import Path

import pytest

from ssl_suite.config import ConfigError
from tests.conftest import ROOT
from tests.runs import run

sys.path.insert(0, str(ROOT / "scripts"))
import rank_runs


def test_agreement_by_hand() -> None:
    rows = [{"rankme": 1.0, "alpha_req": 0.5, "probe": 0.2}, {"rankme": 2.0, "alpha_req": 1.1, "probe": 0.9},
            {"rankme": 3.0, "alpha_req": 2.0, "probe": 0.1}, {"rankme": 9.0, "alpha_req": 1.0}]
    assert rank_runs.agreement(rows, "probe") == pytest.approx({"rankme": -0.5, "alpha_req": 1.0})
    assert rank_runs.agreement(rows[:2], "probe") == {}, "two runs always agree or disagree"


def test_runs_are_ranked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = [run(tmp_path / f"run{i}", "model=vicreg", "data=digits", "data.test_fraction=0.1", f"model.covariance={i}",
                "callbacks.pictures=null", "callbacks.knn=null") for i in range(2)]
    table = tmp_path / "ranks.csv"
    monkeypatch.setattr(sys, "argv", ["rank_runs.py", *map(str, runs), "--by", "lidar", "--score", "loss", "--csv", str(table)])
    rank_runs.main()
    with table.open() as file:
        rows = list(csv.DictReader(file))
    assert {row["run"] for row in rows} == {"run0", "run1"}
    assert float(rows[0]["lidar"]) >= float(rows[1]["lidar"])
    assert all(1.0 < float(row["rankme"]) <= 64.1 and float(row["loss"]) > 0 for row in rows)


def test_what_cannot_be_ranked_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"holds no finished run.*summary\.json"):
        rank_runs.measured(tmp_path, "probe_3shot")
