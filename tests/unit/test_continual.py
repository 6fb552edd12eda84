"""Sequences of data sets: what each run gets, what is made of the judgements, and a short sequence from end to end."""

from __future__ import annotations

import csv
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from ssl_suite.config import ConfigError
from tests.conftest import ROOT

sys.path.insert(0, str(ROOT / "scripts"))
import continual

CONTENT = yaml.safe_load((ROOT / "scripts" / "sequences" / "digits.yaml").read_text())


def test_later_sets_go_on_from_the_plateau_before(tmp_path: Path) -> None:
    (arm,) = continual.read_arms(CONTENT, tmp_path, [7], ["infinite"], ["optimizer.lr=1e-3"])["infinite"]
    first, second = arm.command(0), arm.command(1)
    assert not any("plateau.start" in o or "first" in o for o in first)
    assert f"callbacks.plateau.start={tmp_path / 'infinite-7' / 'upright' / 'plateau.ckpt'}" in second
    assert {"schedule.first=false", "data.at=turned", "seed=7", "optimizer.lr=1e-3"} <= {*second}
    (arm.folder / "turned").mkdir(parents=True)
    (arm.folder / "turned" / "config.yaml").touch()
    assert f"resume={arm.folder / 'turned'}" in arm.command(1)


@pytest.mark.parametrize(("change", "said"), [({"set": {}}, "did you mean 'sets'"),
                                              ({"arms": {"a": {"trian": []}}}, "did you mean 'train'")])
def test_unknown_keys_are_named(change: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=said):
        continual.read_arms({**CONTENT, **change}, tmp_path, [0], ["*"], [])
    with pytest.raises(ConfigError, match="no arm matches constant; there are cosine, "):
        continual.read_arms(CONTENT, tmp_path, [0], ["constant"], [])


def test_figures_by_hand() -> None:
    def row(after: str, on: str, loss: float, probe: float, unannealed: float | None = None) -> dict[str, Any]:
        return {"after": after, "set": on, "loss": loss, "probe_3shot": probe, "unannealed": unannealed}

    rows = [row("a", "a", 0.2, 0.9, 0.4), row("b", "a", 0.5, 0.7), row("b", "b", 0.1, 0.8, 0.1)]
    found = continual.figures(rows, ["a", "b"])
    assert found == pytest.approx({"loss": 0.3, "first": 0.5, "newest": 0.1, "forgetting": 0.3, "annealing": 0.25,
                                   "probe_3shot": 0.75, "probe_forgetting": 0.2})


@pytest.mark.slow
def test_a_short_sequence_from_end_to_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = tmp_path / "table.csv"
    given = ["continual.py", "digits", "--only", "infinite_replay", "--seeds", "11", "--set", "trainer.max_epochs=2", "--runs",
             str(tmp_path), "--csv", str(table)]
    monkeypatch.setattr(sys, "argv", given)
    continual.main()
    with table.open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["after"], row["set"]) for row in rows] == [
        ("upright", "upright"), ("turned", "upright"), ("turned", "turned"), ("inverted", "upright"), ("inverted", "turned"),
        ("inverted", "inverted")]
    assert all(float(row["loss"]) > 0 for row in rows)
    plateau = tmp_path / "digits" / "infinite_replay-11" / "turned" / "plateau.ckpt"
    before = plateau.stat().st_mtime_ns
    continual.main()
    assert plateau.stat().st_mtime_ns == before, "nothing is done twice"
