"""The schema of summary.json."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path
from typing import Any

import pytest

from ssl_suite.config import ConfigError
from ssl_suite.summary import Summary, check_summary, commit, flat, read_summary, timed_rate, versions, write_summary

ROOT = Path(__file__).resolve().parents[2]
GOOD: Summary = {
    "method": "mae", "data": "digits", "modality": "images", "seed": 0, "commit": "unknown", "versions": {"torch": "2.12"},
    "wall_seconds": 1.5, "samples_per_second": 10, "data_wait": 0.25, "scores": {"knn": 0.5},
    "references": {"raw": {"knn": 0.4}, "untrained": {}}}


def test_a_good_summary_is_written_whole(tmp_path: Path) -> None:
    write_summary(tmp_path, GOOD)
    assert [p.name for p in tmp_path.iterdir()] == ["summary.json"]
    assert json.loads((tmp_path / "summary.json").read_text()) == read_summary(tmp_path) == GOOD


def test_a_folder_without_a_finished_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"{tmp_path.name} holds no finished run"):
        read_summary(tmp_path)


@pytest.mark.parametrize("key", list(GOOD))
def test_a_missing_key_is_named(key: str, tmp_path: Path) -> None:
    bad: dict[str, Any] = {k: v for k, v in GOOD.items() if k != key}
    with pytest.raises(ValueError, match=key):
        check_summary(bad)


@pytest.mark.parametrize(("place", "value"), [
    (("scores", "knn"), "high"), (("scores", "knn"), float("nan")), (("scores", "knn"), True), (("scores", "knn"), None),
    (("references", "raw", "knn"), float("inf")), (("wall_seconds",), "1 s"), (("data_wait",), float("nan")),
    (("seed",), 1.0), (("seed",), True),
    (("method",), ""), (("commit",), None), (("versions",), {}), (("versions", "torch"), 2.12), (("scores",), {})])
def test_a_wrong_value_is_refused(place: tuple[str, ...], value: Any, tmp_path: Path) -> None:
    bad: Any = copy.deepcopy(GOOD)
    node = bad
    for step in place[:-1]:
        node = node[step]
    node[place[-1]] = value
    with pytest.raises(ValueError, match=place[-1]):
        write_summary(tmp_path, bad)
    assert not (tmp_path / "summary.json").exists()


def test_an_unknown_key_is_refused() -> None:
    with pytest.raises(ValueError, match="socres"):
        check_summary({**GOOD, "socres": {}})


def test_a_wait_that_was_not_measured_is_null() -> None:
    check_summary({**GOOD, "data_wait": None})


def test_the_page_lists_every_key() -> None:
    page = (ROOT / "docs" / "summary.md").read_text()
    assert set(re.findall(r"^\| `(\w+)` \|", page, re.M)) >= set(Summary.__annotations__)


def test_small_parts() -> None:
    assert timed_rate(100, 4.0) == 25.0
    assert timed_rate(100, 0.0) == 0.0
    assert flat({"a": 1}) == {"a": 1.0}
    assert versions()["torch"].startswith("2.")
    assert re.fullmatch(r"[0-9a-f]{12}\+?|unknown", commit())
