"""The catalogue says what the code says."""

from __future__ import annotations

from ssl_suite.catalogue import entries, markdown
from tests.configs import CONFIGS, names

ROOT = CONFIGS.parent


def test_every_model_config_is_listed_once() -> None:
    assert sorted(e.name for e in entries()) == names("model")


def test_entries_are_complete() -> None:
    for entry in entries():
        assert entry.program in ("train.py", "adapt.py", "train.py and adapt.py", entry.tags.script), entry.name
        assert entry.tags.script is None or (ROOT / entry.tags.script).is_file(), entry.name
        assert entry.tags.paper, entry.name
        assert entry.tags.modalities, entry.name
        assert ": " in entry.summary, f"{entry.name}: the first line of a method file is 'Name: what it does.'"


def test_markdown_has_one_row_each() -> None:
    lines = markdown().splitlines()
    assert len(lines) == 2 + len(names("model"))
    assert all(line.count("|") == lines[0].count("|") for line in lines)
    mae = next(line for line in lines if line.startswith("| `mae` |"))
    assert "He et al." in mae
    assert "`train.py`" in mae


def test_a_preset_of_fixmatch_says_what_its_policy_does() -> None:
    rows = {e.name: e for e in entries()}
    assert rows["freematch"].summary.startswith("FreeMatch: ")
    assert "2205.07246" in rows["freematch"].tags.paper
    assert rows["fixmatch"].summary.startswith("FixMatch: ")
    assert len({e.summary for e in rows.values() if e.tags.task == "self_training"}) == sum(
        e.tags.task == "self_training" for e in rows.values())
