"""Self-training in stages that is killed between or within them ends with the same bits as one left alone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.conftest import ROOT
from tests.faults.runs import TINY, finish, identical, killed
from tests.runs import masks

pytestmark = pytest.mark.faults

SETTINGS = (*TINY, "data.labels_per_class=4", "data.steps_per_epoch=8", "trainer.max_epochs=2", "data.batch_size=16")


def script(name: str, *arguments: str) -> subprocess.Popen[str]:
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(ROOT / "scripts" / f"{name}.py"), *arguments]
    return subprocess.Popen(command, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True)


def start(folder: Path) -> subprocess.Popen[str]:
    settings = [s for s in SETTINGS if s != "trainer.max_epochs=3"]
    return script("self_train", "st", "--set", *settings, "--runs", str(folder))


def weights(stage: Path) -> dict[str, torch.Tensor]:
    last = max((stage / "checkpoints").glob("*.ckpt"), key=lambda p: p.stat().st_mtime_ns)
    return torch.load(last, weights_only=True)["state_dict"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a plan that was left alone."""
    folder = tmp_path_factory.mktemp("whole")
    code, output = finish(start(folder), 600)
    assert code == 0, output
    return folder / "st-0"


@pytest.mark.parametrize(("proof", "how"), [
    ("teacher/checkpoints/*.ckpt", signal.SIGKILL), ("teacher/summary.json", signal.SIGKILL),
    ("student/pseudo_labels.npz", signal.SIGKILL), ("student/checkpoints/*.ckpt", signal.SIGKILL),
    ("student/checkpoints/*.ckpt", signal.SIGTERM)])
def test_a_killed_plan_ends_the_same(proof: str, how: signal.Signals, whole: Path, tmp_path: Path) -> None:
    assert killed(start(tmp_path), tmp_path / "st-0", proof, how) == (-how if how is signal.SIGKILL else 128 + how)
    assert not (tmp_path / "st-0" / "rounds.json").exists(), "killed too late to prove anything"
    code, output = finish(start(tmp_path), 600)
    assert code == 0, output
    with np.load(tmp_path / "st-0/student/pseudo_labels.npz") as ours, np.load(whole / "student/pseudo_labels.npz") as theirs:
        assert all(np.array_equal(ours[key], theirs[key]) for key in theirs.files)
    for stage in ("teacher", "student"):
        assert identical(weights(tmp_path / "st-0" / stage), weights(whole / stage))


def start_masks(data: Path, folder: Path) -> subprocess.Popen[str]:
    settings = [s for s in TINY if not s.startswith(("data=", "trainer.max_epochs", "callbacks.checkpoint"))]
    return script("self_training_masks", "wbc_masks", "--data", str(data), "--labels", "4", "--seeds", "0", "--rows", "st",
                  "--runs", str(folder), "--set", *settings, "data.size=16", "data.steps_per_epoch=1", "trainer.max_epochs=20",
                  "callbacks.knn=null")


@pytest.fixture(scope="module")
def whole_masks(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Tiny data and the folder of stages that were left alone."""
    folder = tmp_path_factory.mktemp("masks")
    code, output = finish(start_masks(masks(folder), folder), 600)
    assert code == 0, output
    return folder / "masks.npz", folder / "4-0"


@pytest.mark.parametrize(("stage", "how"), [("supervised", signal.SIGKILL), ("st", signal.SIGTERM)])
def test_killed_stages_of_masks_end_the_same(stage: str, how: signal.Signals, whole_masks: tuple[Path, Path],
                                             tmp_path: Path) -> None:
    data, whole = whole_masks
    assert killed(start_masks(data, tmp_path), tmp_path / "4-0", f"{stage}/checkpoints/*.ckpt", how) in (-how, 128 + how)
    assert not (tmp_path / "4-0/st/summary.json").exists(), "killed too late to prove anything"
    code, output = finish(start_masks(data, tmp_path), 600)
    assert code == 0, output
    assert "resume=" in (tmp_path / "4-0" / stage / "command.txt").read_text()
    with np.load(tmp_path / "4-0/pseudo_masks.npz") as ours, np.load(whole / "pseudo_masks.npz") as theirs:
        assert all(np.array_equal(ours[key], theirs[key]) for key in theirs.files)
    for name in ("supervised", "st"):
        assert identical(weights(tmp_path / "4-0" / name), weights(whole / name))
