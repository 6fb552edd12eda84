"""A sequence of data sets that is killed between or within runs ends with the same bits as one left alone."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.conftest import ROOT
from tests.faults.runs import TINY, finish, killed

pytestmark = pytest.mark.faults

SETTINGS = (*(s for s in TINY if s != "data=digits" and "max_epochs" not in s), "trainer.max_epochs=2",
            *(f"data.sets.{name}.steps_per_epoch=5" for name in ("upright", "turned", "inverted")))


def start(folder: Path) -> subprocess.Popen[str]:
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(ROOT / "scripts" / "continual.py"), "digits", "--only", "infinite_replay", "--seeds", "0",
               "--set", *SETTINGS, "--runs", str(folder)]
    return subprocess.Popen(command, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a sequence that was left alone."""
    folder = tmp_path_factory.mktemp("whole")
    code, output = finish(start(folder), 900)
    assert code == 0, output
    return folder / "digits" / "infinite_replay-0"


def weights(path: Path) -> dict[str, torch.Tensor]:
    return torch.load(path, weights_only=True)["state_dict"]


@pytest.mark.parametrize(("proof", "how"), [("upright/judged.json", signal.SIGKILL), ("turned/plateau.ckpt", signal.SIGKILL),
                                            ("turned/checkpoints/*.ckpt", signal.SIGTERM)])
def test_a_killed_sequence_ends_the_same(proof: str, how: signal.Signals, whole: Path, tmp_path: Path) -> None:
    made = tmp_path / "digits" / "infinite_replay-0"
    assert killed(start(tmp_path), made, proof, how) == (-how if how is signal.SIGKILL else 128 + how)
    assert not (made / "inverted" / "judged.json").exists(), "killed too late to prove anything"
    code, output = finish(start(tmp_path), 900)
    assert code == 0, output
    for name in ("upright", "turned", "inverted"):
        expected, found = weights(whole / name / "plateau.ckpt"), weights(made / name / "plateau.ckpt")
        assert all(torch.equal(expected[key], value) for key, value in found.items()), name
        assert json.loads((whole / name / "judged.json").read_text()) == json.loads((made / name / "judged.json").read_text())
