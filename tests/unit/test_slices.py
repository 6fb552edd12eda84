"""Slices of a run, judged."""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path

import pytest

from ssl_suite.config import ConfigError
from tests.conftest import ROOT
from tests.runs import run

sys.path.insert(0, str(ROOT / "scripts"))
import slices

POA = ("model=poa", "data=digits", "data.test_fraction=0.1", "model.local_crops=0", "evaluation.probes=true",
       "callbacks.pictures=null", "callbacks.knn=null")


def test_slices_are_judged_beside_the_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, table = run(tmp_path / "run", *POA), tmp_path / "slices.csv"
    monkeypatch.setattr(sys, "argv", ["slices.py", str(folder), "--csv", str(table)])
    slices.main()
    with table.open() as file:
        rows = {row["size"]: row for row in csv.DictReader(file)}
    assert list(rows) == ["32x2", "48x3", "whole"]
    assert int(rows["32x2"]["parameters"]) < int(rows["48x3"]["parameters"]) < int(rows["whole"]["parameters"])
    scores = json.loads((folder / "summary.json").read_text())["scores"]
    assert float(rows["whole"]["knn"]) == pytest.approx(scores["knn"]), "the whole is the run's own encoder"


def test_what_cannot_be_cut_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"holds no finished run.*summary\.json"):
        slices.judged(tmp_path, [])
    with pytest.raises(ConfigError, match="WIDTHxDEPTH, such as 32x2"):
        slices.size("32")
    folder = run(tmp_path / "run", "model=vicreg", "data=digits", "data.test_fraction=0.1", "callbacks.pictures=null",
                 "callbacks.knn=null")
    with pytest.raises(ConfigError, match="cut patch transformers, and ConvNet"):
        slices.judged(folder, [])
