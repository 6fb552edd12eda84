"""The long run of scripts/soak.py, shortened."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

from tests.conftest import ROOT


@pytest.mark.slow
def test_two_thousand_batches_leave_memory_and_source_as_they_were(tmp_path: Path) -> None:
    found = runpy.run_path(str(ROOT / "scripts" / "soak.py"))["soak"](2000, tmp_path)
    assert found.batches[-1] == 2000
    assert found.growth() < 4.0, found.mib
    assert found.drifted == 0
    assert found.bad_answers == 0
    assert found.counts["ok"] > 1500
    assert found.counts["skip"] >= 30, "the bad batches"
    assert (tmp_path / "default.pt").is_file()
