"""``metrics.csv`` holds each step once, also when a run is taken up again."""

from __future__ import annotations

import csv
from pathlib import Path

from ssl_suite.callbacks.logger import MetricsFile


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_rows_of_one_step_are_one(tmp_path: Path) -> None:
    log = MetricsFile(str(tmp_path))
    log.log_metrics({"a": 1.0}, 0)
    log.log_metrics({"b": 2.0}, 0)
    log.log_metrics({"a": 3.0}, 1)
    log.finalize("success")
    assert rows(tmp_path) == [{"step": "0", "a": "1.0", "b": "2.0"}, {"step": "1", "a": "3.0", "b": ""}]


def test_a_checkpoint_brings_the_file_up_to_date(tmp_path: Path) -> None:
    log = MetricsFile(str(tmp_path))
    log.log_metrics({"a": 1.0}, 0)
    assert not (tmp_path / "metrics.csv").exists()
    log.after_save_checkpoint(None)
    assert len(rows(tmp_path)) == 1


def test_resume_drops_what_lies_beyond(tmp_path: Path) -> None:
    old = MetricsFile(str(tmp_path))
    for step in range(6):
        old.log_metrics({"a": float(step)}, step)
    old.save()
    new = MetricsFile(str(tmp_path))
    new.log_metrics({"a": 30.0}, 3)
    new.log_metrics({"a": 40.0}, 4)
    new.save()
    assert [(r["step"], r["a"]) for r in rows(tmp_path)] == [
        ("0", "0.0"), ("1", "1.0"), ("2", "2.0"), ("3", "30.0"), ("4", "40.0")]


def test_a_run_that_only_looks_keeps_the_file(tmp_path: Path) -> None:
    old = MetricsFile(str(tmp_path))
    old.log_metrics({"a": 1.0}, 0)
    old.save()
    MetricsFile(str(tmp_path)).finalize("success")
    assert len(rows(tmp_path)) == 1
