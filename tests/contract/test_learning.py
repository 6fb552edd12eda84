"""Every method of pre-training for pictures learns: on embedded digits its features beat the untrained net, as configured."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import yaml

from tests.conftest import ROOT
from tests.runs import run

sys.path.insert(0, str(ROOT / "scripts"))
from table import TABLES, rows_of

pytestmark = pytest.mark.slow

TABLE = yaml.safe_load((TABLES / "digits_pretraining.yaml").read_text())


@pytest.mark.parametrize(("row", "overrides"), rows_of(TABLE).items())
def test_features_beat_those_of_the_untrained_net(row: str, overrides: list[str], tmp_path: Path) -> None:
    """By 8 points with three labels a class, the least that the Cookbook's small reproduction asks for."""
    folder = run(tmp_path, *TABLE["common"], *overrides, "seed=0", "callbacks.pictures=null", "callbacks.knn=null", quick=False)
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["scores"]["probe_3shot"] >= summary["references"]["untrained"]["probe_3shot"] + 0.08
