"""Every stream preset composes, validates and runs; what ``adapt.py`` leaves behind is whole."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from ssl_suite.config import validate
from ssl_suite.deploy import GROUPS, deploy
from ssl_suite.summary import check_summary
from tests.configs import composed, names
from tests.runs import run

SHORT = ("stream.shifts=[gaussian_noise,clean]", "stream.family=digits", "stream.limit=32")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run(tmp_path_factory.mktemp("trained") / "run", "model=supervised", "data=digits", "backbone=cifar_resnet_tiny",
               "backbone.norm=batch")


def adapted(folder: Path, *overrides: str) -> tuple[dict[str, Any], list[dict[str, str]]]:
    """Summary and rows of a finished adaptation."""
    folder.mkdir()
    deploy(OmegaConf.create(composed(*overrides, program="adapt")), folder)
    with (folder / "metrics.csv").open() as file:
        return json.loads((folder / "summary.json").read_text()), list(csv.DictReader(file))


@pytest.mark.parametrize("name", names("stream"))
def test_preset(name: str, trained: Path, tmp_path: Path) -> None:
    size = [] if name == "single" else ["stream.batch_size=16"]
    words = ("model=tent", f"stream={name}", f"checkpoint={trained}", "seed=0", *SHORT, *size)
    cfg = composed(*words, program="adapt")
    validate({k: v for k, v in cfg.items() if k not in ("model", "trainer")}, GROUPS)
    summary, rows = adapted(tmp_path / "out", *words)
    check_summary(summary)
    found = summary["scores"]
    assert {"error_adapted_gaussian_noise", "error_adapted_clean", "ms_median", "ms_p95", "ms_source_median", "memory_mib",
            "share_used", "error_clean_before", "error_clean_after"} <= found.keys()
    whole = [row for row in rows if not row["shift"].startswith("mixed:")]
    assert sum(int(row["n"]) for row in whole) == {"gradual": 10, "mixed": 2}.get(name, 2) * 32
    steps = sum(int(row["updates"]) + int(row["skipped"]) for row in whole)
    assert steps == sum(math.ceil(int(row["n"]) / cfg["stream"]["batch_size"]) for row in whole)
    assert found["gain"] == pytest.approx(found["error_source"] - found["error_adapted"], abs=1e-5)
    assert {p.name for p in (tmp_path / "out" / "pictures").iterdir()} == {"shifts.png", "stream.png"}
