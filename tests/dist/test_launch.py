"""Launchers of others: ``torchrun`` on one node, and on two nodes on the loopback."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.faults.runs import checkpoints, finish, only_run
from tests.runs import tiny_data

pytestmark = pytest.mark.dist


def torchrun(folder: Path, launch: list[str], *overrides: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "torch.distributed.run", *launch, str(ROOT / "train.py"), "model=byol",
               *tiny_data("images", folder), "trainer=ddp", "trainer.accelerator=cpu", *overrides]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(command, cwd=folder, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                            start_new_session=True)


def test_one_node(tmp_path: Path) -> None:
    code, output = finish(torchrun(tmp_path, ["--standalone", "--nproc-per-node=2"], "trainer.devices=2"))
    assert code == 0, output[-3000:]
    assert (only_run(tmp_path) / "summary.json").is_file()


def test_two_nodes(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    nodes = [torchrun(tmp_path, ["--nnodes=2", f"--node-rank={rank}", "--master-addr=127.0.0.1", f"--master-port={port}"],
                      "trainer.devices=1", "trainer.num_nodes=2") for rank in range(2)]
    for code, output in map(finish, nodes):
        assert code == 0, output[-3000:]
    assert (only_run(tmp_path) / "summary.json").is_file()


def children(process: int) -> list[int]:
    """Processes that a process started."""
    return [int(child) for child in Path(f"/proc/{process}/task/{process}/children").read_text().split()]


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="finds the processes under /proc")
def test_one_process_dies(tmp_path: Path) -> None:
    launcher = torchrun(tmp_path, ["--standalone", "--nproc-per-node=2"], "trainer.devices=2", "trainer.max_epochs=1000")
    deadline = time.monotonic() + 120.0
    while not checkpoints(tmp_path):
        assert launcher.poll() is None, launcher.communicate()[0][-3000:]
        assert time.monotonic() < deadline, "the run did not start"
        time.sleep(0.05)
    os.kill(children(launcher.pid)[-1], signal.SIGKILL)
    code, output = finish(launcher, 90.0)  # a hang fails here
    assert code != 0
    assert "SIGKILL" in output, "the first fault is not named"
    assert not (only_run(tmp_path) / "summary.json").exists()


BUSY = """
import os, pathlib, signal, time
beats = pathlib.Path("beats")
while os.environ["RANK"] == "0" or not beats.exists():
    if os.environ["RANK"] == "0":
        beats.open("a").write(".")
    time.sleep(0.01)
os.kill(os.getpid(), signal.SIGKILL)
"""
"""The first process works and asks the other for nothing; the other is killed as soon as the first works."""


def beats(folder: Path) -> int:
    """How much the first process has done."""
    return (folder / "beats").stat().st_size


def test_the_launcher_ends_a_process_that_does_not_ask_the_other(tmp_path: Path) -> None:
    (tmp_path / "busy.py").write_text(BUSY)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "busy.py"]
    launcher = subprocess.Popen(command, cwd=tmp_path, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                                start_new_session=True)
    code, output = finish(launcher, 90.0)
    assert code != 0
    assert "SIGKILL" in output
    done = beats(tmp_path)
    time.sleep(0.1)
    assert beats(tmp_path) == done


def test_control_without_a_launcher_it_goes_on(tmp_path: Path) -> None:
    first, other = (subprocess.Popen([sys.executable, "-c", BUSY], cwd=tmp_path, env={**os.environ, "RANK": str(rank)})
                    for rank in range(2))
    try:
        assert other.wait(60.0) == -signal.SIGKILL
        done, deadline = beats(tmp_path), time.monotonic() + 60.0
        while beats(tmp_path) < done + 100:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert first.poll() is None
    finally:
        first.kill()
        first.wait()
