"""Cells of a table: what runs, and what is passed over."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

sys.path.insert(0, str(ROOT / "scripts"))
import table


def test_finished_cells_are_passed_over_and_a_stopped_training_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    started: list[list[str]] = []
    monkeypatch.setattr("ssl_suite.programs.finished_run", lambda given, folder: started.append([Path(given[0]).name, *given[1:]]))
    monkeypatch.setattr(table, "finished_run", lambda given, folder: started.append([Path(given[0]).name, *given[1:]]))
    rows = {"done": ["model=mae"], "stopped": ["model=byol"], "new": ["model=simclr"], "adapted": {"adapt": ["checkpoint={new}"]}}
    for row, file in (("done", "summary.json"), ("stopped", "config.yaml")):
        (tmp_path / f"{row}-3").mkdir()
        (tmp_path / f"{row}-3" / file).touch()
    ticks: list[None] = []
    given = {"rows": rows, "common": ["data=digits"], "data": "files"}
    table.run_seed(given, 3, list(rows), tmp_path, ["model.x=1"], lambda: ticks.append(None))
    assert started == [
        ["train.py", "data=digits", "model=byol", "model.x=1", "seed=3", f"hydra.run.dir={tmp_path}/stopped-3",
         f"resume={tmp_path}/stopped-3"],
        ["train.py", "data=digits", "model=simclr", "model.x=1", "seed=3", f"hydra.run.dir={tmp_path}/new-3"],
        ["adapt.py", "data=digits", f"checkpoint={tmp_path}/new-3", "model.x=1", "seed=3", f"hydra.run.dir={tmp_path}/adapted-3"]]
    assert len(ticks) == 4
