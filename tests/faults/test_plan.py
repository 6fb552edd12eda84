"""A plan of self-training that is killed between or within stages ends with the same bits as one left alone."""

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

pytestmark = pytest.mark.faults

SETTINGS = (*TINY, "data.labels_per_class=4", "data.steps_per_epoch=8", "trainer.max_epochs=2", "data.batch_size=16")


def start(folder: Path) -> subprocess.Popen[str]:
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    settings = [s for s in SETTINGS if s != "trainer.max_epochs=3"]
    command = [sys.executable, str(ROOT / "scripts" / "self_train.py"), "st", "--set", *settings, "--runs", str(folder)]
    return subprocess.Popen(command, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True)


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
