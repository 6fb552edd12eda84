"""Every stream preset composes, validates and runs; what ``adapt.py`` leaves behind is whole."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from omegaconf import OmegaConf

from datamodules.images.digits import DigitsDataModule
from ssl_suite.config import ConfigError
from ssl_suite.deploy import deploy
from ssl_suite.summary import check_summary
from tests.configs import composed, names
from tests.runs import run

SHORT = ("stream.shifts=[gaussian_noise,clean]", "stream.family=digits", "stream.limit=32")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run(tmp_path_factory.mktemp("trained") / "run", "model=supervised", "data=digits", "backbone=cifar_resnet_tiny",
               "backbone.norm=batch")


def adapted(folder: Path, cfg: dict[str, Any]) -> tuple[dict[str, Any], list[dict[str, str]]]:
    """Summary and rows of a finished adaptation."""
    folder.mkdir()
    deploy(OmegaConf.create(cfg), folder)
    with (folder / "metrics.csv").open() as file:
        return json.loads((folder / "summary.json").read_text()), list(csv.DictReader(file))


@pytest.mark.parametrize("name", names("stream"))
def test_preset(name: str, trained: Path, tmp_path: Path) -> None:
    size = [] if name == "single" else ["stream.batch_size=16"]
    cfg = composed("model=tent", f"stream={name}", f"checkpoint={trained}", "seed=0", *SHORT, *size, program="adapt")
    summary, rows = adapted(tmp_path / "out", cfg)
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


@pytest.mark.parametrize(("overrides", "said"), [
    (["weights=net.pt"], r"weights=net\.pt belongs to network=\.\.\.; a run brings its own"),
    (["stream.shifts=[fogg]"], "stream: no shift 'fogg' of images"),
    (["stream.folder=nowhere"], r"stream\.folder=nowhere does not exist"),
    (["stream.order=shuffled"], r"stream\.order='shuffled'"), (["stream.reset=daily"], r"stream\.reset='daily'"),
    (["stream.part=tset"], "part='tset': these data have train, val, test"), (["stream.delta=0"], r"delta=0 must be above 0")])
def test_mistakes_are_told_before_anything_is_written(overrides: list[str], said: str, trained: Path, tmp_path: Path) -> None:
    cfg = composed("model=tent", f"checkpoint={trained}", "seed=0", *overrides, program="adapt")
    with pytest.raises(ConfigError, match=said):
        deploy(OmegaConf.create(cfg), tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_published_folder(trained: Path, tmp_path: Path) -> None:
    """Arrays in the layout of CIFAR-C, of the network's own size: the source is right where they are its own test part."""
    data = DigitsDataModule(seed=0)
    data.setup()
    source, rows = data.parts["test"]
    x = source.fetch(rows)["x"].numpy().transpose(0, 2, 3, 1)
    folder = tmp_path / "DIGITS-C"
    folder.mkdir()
    np.save(folder / "fog.npy", np.concatenate([x, x, x, x, 255 - x]))
    np.save(folder / "labels.npy", np.tile(source.targets[rows], 5))
    cfg = composed("model=bn_adapt", f"checkpoint={trained}", f"stream.folder={folder}", "stream.severity=2", "seed=0",
                   program="adapt")
    found = adapted(tmp_path / "out", cfg)[0]
    assert found["references"]["source"]["error_fog"] == pytest.approx(found["scores"]["error_clean_before"], abs=1e-6)
