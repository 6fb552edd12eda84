"""Programs started, killed and compared; kills wait for a state on disk, never for a clock."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from tests.conftest import ROOT

TINY = ("data=digits", "evaluation.probes=false", "callbacks.pictures=null", "callbacks.progress=null",
        "logger.tensorboard=null", "trainer.max_epochs=3", "trainer.log_every_n_steps=1",
        "callbacks.checkpoint.every_n_epochs=null", "callbacks.checkpoint.every_n_train_steps=2",
        "callbacks.checkpoint.save_on_train_epoch_end=null")


def start(folder: Path, *overrides: str, program: tuple[str, ...] = (str(ROOT / "train.py"),)) -> subprocess.Popen[str]:
    """Start ``train.py`` or another program in a folder, in a process group of its own."""
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "default"}
    return subprocess.Popen([sys.executable, *program, *overrides], cwd=folder, env=env, text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True)


def finish(process: subprocess.Popen[str], timeout: float = 180.0) -> tuple[int, str]:
    """Exit code and everything printed."""
    try:
        output, _ = process.communicate(timeout=timeout)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
    return process.returncode, output


def killed(process: subprocess.Popen[str], folder: Path, proof: str, how: signal.Signals, timeout: float = 600.0) -> int:
    """Kill a program (SIGKILL: with all it started) as soon as ``proof`` lies in its folder; returns its exit code."""
    deadline = time.monotonic() + timeout
    while not any(folder.glob(proof)):
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline, f"no {proof}"
        time.sleep(0.001)
    if how is signal.SIGKILL:
        os.killpg(process.pid, how)
    else:
        process.send_signal(how)  # to the program alone: it must end what it started
    return finish(process, 300)[0]


def train(folder: Path, *overrides: str) -> str:
    """Run to the end; returns what was printed."""
    code, output = finish(start(folder, *overrides))
    assert code == 0, output[-3000:]
    return output


def only_run(folder: Path) -> Path:
    """The one run folder below a working folder."""
    runs = sorted(folder.glob("runs/*/*"))
    assert len(runs) == 1, runs
    return runs[0]


def checkpoints(folder: Path) -> list[Path]:
    """Checkpoints of all runs below a folder, oldest first."""
    return sorted(folder.glob("runs/*/*/checkpoints/*.ckpt"), key=step_of)


def step_of(path: Path) -> int:
    """Optimizer step a checkpoint was written at."""
    return int(path.stem.split("=")[1].split("-")[0])


def saved(folder: Path) -> int:
    """Newest step of which there is a checkpoint."""
    return max(map(step_of, checkpoints(folder)), default=0)


def logged(folder: Path) -> int:
    """Newest step of training in ``metrics.csv``."""
    return max(metric_steps(folder), default=0) if any(folder.glob("runs/*/*/metrics.csv")) else 0


def kill_at(process: subprocess.Popen[str], folder: Path, step: int, how: signal.Signals = signal.SIGKILL,
            patience: float = 300.0, reached: Callable[[Path], int] = saved) -> tuple[int, str]:
    """Signal a run once it has saved, or logged, at least that step; returns exit code and output."""
    deadline = time.monotonic() + patience
    while reached(folder) < step:
        assert process.poll() is None, process.communicate()[0][-3000:]
        if time.monotonic() > deadline:
            os.killpg(process.pid, signal.SIGKILL)
            raise AssertionError(f"step {step} was not reached within {patience} s")
        time.sleep(0.001)
    if how is signal.SIGKILL:
        os.killpg(process.pid, how)
    else:
        process.send_signal(how)
    return finish(process)


def final_state(folder: Path) -> dict[str, Any]:
    """Weights, optimizer and schedule in the last checkpoint."""
    content = torch.load(checkpoints(folder)[-1], weights_only=True)
    return {"step": content["global_step"], "weights": content["state_dict"],
            "optimizer": content["optimizer_states"][0]["state"], "schedule": content["lr_schedulers"]}


def identical(a: Any, b: Any) -> bool:
    """Whether two nested containers hold the same bits."""
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(identical(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(identical, a, b))
    return bool(a == b)


def metric_steps(folder: Path) -> list[int]:
    """Steps of training in ``metrics.csv``, in order."""
    with (only_run(folder) / "metrics.csv").open(newline="") as file:
        return [int(row["step"]) for row in csv.DictReader(file) if row["train/loss"]]
