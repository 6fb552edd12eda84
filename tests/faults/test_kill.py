"""Killed anywhere, a run ends with the same bits as one that was left alone."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ssl_suite.callbacks.resume import rng_state
from ssl_suite.io.checkpoints import AtomicCheckpointIO
from tests.faults.runs import (
    TINY,
    checkpoints,
    final_state,
    identical,
    kill_at,
    logged,
    metric_steps,
    only_run,
    start,
    step_of,
    train,
)

pytestmark = pytest.mark.faults

MODELS = {
    "byol": ("model=byol", "data.batch_size=128"),
    "fixmatch": ("model=fixmatch", "data.batch_size=16", "data.mu=4", "data.steps_per_epoch=8"),
    "mixup": ("model=finetune", "model.mixup=0.8", "data.batch_size=128"),
    "two processes": ("model=simclr", "data.batch_size=64", "trainer=ddp", "trainer.accelerator=cpu",
                      "trainer.devices=2"),
    "sharded": ("model=byol", "data.batch_size=64", "trainer=fsdp", "trainer.accelerator=cpu", "trainer.devices=2"),
}
"""An average of weights; labelled beside unlabelled batches; numbers from a global generator; two processes, with whole
and with sharded weights."""

PER_EPOCH, LAST = 8, 24


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Folder of an uninterrupted run of a model, trained once."""
    done: dict[str, Path] = {}

    def folder_of(model: str) -> Path:
        if model not in done:
            done[model] = tmp_path_factory.mktemp("whole")
            train(done[model], *MODELS[model], *TINY)
        return done[model]

    return folder_of


@pytest.mark.parametrize(("model", "workers", "step"), [
    ("byol", 0, 4), ("byol", 2, 12), ("byol", 2, PER_EPOCH), ("fixmatch", 0, 2 * PER_EPOCH), ("fixmatch", 2, 10),
    ("two processes", 1, 10), ("sharded", 0, 10)])
def test_killed_run_ends_the_same(model: str, workers: int, step: int, whole: Callable[[str], Path],
                                  tmp_path: Path) -> None:
    overrides = (*MODELS[model], *TINY, f"data.num_workers={workers}")
    code, _ = kill_at(start(tmp_path, *overrides), tmp_path, step)
    assert code == -signal.SIGKILL
    assert step_of(checkpoints(tmp_path)[-1]) < LAST, "killed too late to prove anything"
    train(tmp_path, *overrides, "resume=auto")
    assert identical(final_state(tmp_path), final_state(whole(model)))
    assert metric_steps(tmp_path) == list(range(LAST))
    assert (only_run(tmp_path) / "summary.json").is_file()
    assert not list(only_run(tmp_path).glob("checkpoints/.*")), "a temporary file was left"


@pytest.fixture(scope="session")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a run with mixup that was killed in its second epoch."""
    folder = tmp_path_factory.mktemp("killed")
    kill_at(start(folder, *MODELS["mixup"], *TINY), folder, 10)
    assert step_of(checkpoints(folder)[-1]) < LAST
    return folder


@pytest.fixture
def copy(killed: Path, tmp_path: Path) -> Path:
    """A copy of the killed run."""
    shutil.copytree(killed, tmp_path, dirs_exist_ok=True)
    return tmp_path


def resume(folder: Path) -> str:
    return train(folder, *MODELS["mixup"], *TINY, f"resume={only_run(folder).relative_to(folder)}")


def test_global_random_numbers_go_on(copy: Path, whole: Callable[[str], Path]) -> None:
    resume(copy)
    assert identical(final_state(copy), final_state(whole("mixup")))


def without_random_state(content: dict[str, Any]) -> None:
    torch.manual_seed(99)
    content["resume"]["rng"] = [rng_state()]


def without_position(content: dict[str, Any]) -> None:
    content["resume"]["position"] = 0


@pytest.mark.parametrize("drop", [without_random_state, without_position])
def test_control_without_saved_state_differs(drop: Callable[[dict[str, Any]], None], copy: Path,
                                             whole: Callable[[str], Path]) -> None:
    io, newest = AtomicCheckpointIO(), checkpoints(copy)[-1]
    content = io.load_checkpoint(newest)
    drop(content)
    io.save_checkpoint(content, newest)
    resume(copy)
    assert not identical(final_state(copy)["weights"], final_state(whole("mixup"))["weights"])


def test_truncated_checkpoint_falls_back(copy: Path, whole: Callable[[str], Path]) -> None:
    newest = checkpoints(copy)[-1]
    with newest.open("r+b") as file:
        file.truncate(newest.stat().st_size // 2)
    output = resume(copy)
    assert f"{newest.name} is damaged" in output.replace("\n", "")
    assert identical(final_state(copy), final_state(whole("mixup")))
    assert metric_steps(copy) == list(range(LAST))


def test_resume_of_a_finished_run(whole: Callable[[str], Path], tmp_path: Path) -> None:
    """A complete run is left alone; one that was killed after its last step is only judged."""
    shutil.copytree(whole("byol"), tmp_path, dirs_exist_ok=True)
    run = only_run(tmp_path)
    before = {p: p.stat().st_mtime_ns for p in run.rglob("*") if p.is_file()}
    assert "already complete" in train(tmp_path, *MODELS["byol"], *TINY, "resume=auto")
    assert before == {p: p.stat().st_mtime_ns for p in run.rglob("*") if p.is_file()}
    (run / "summary.json").unlink()
    train(tmp_path, *MODELS["byol"], *TINY, "resume=auto")
    assert (run / "summary.json").is_file()
    assert identical(final_state(tmp_path), final_state(whole("byol")))
    assert metric_steps(tmp_path) == list(range(LAST))


@pytest.mark.parametrize("model", ["byol", "two processes"])
def test_terminated_run_saves_and_goes_on(model: str, whole: Callable[[str], Path], tmp_path: Path) -> None:
    overrides = (*MODELS[model], *TINY)
    rare = ("callbacks.checkpoint.every_n_train_steps=7", "callbacks.termination.every_n_steps=1")
    code, output = kill_at(start(tmp_path, *overrides, *rare), tmp_path, 7, signal.SIGTERM)
    assert code == 128 + signal.SIGTERM, output[-2000:]
    assert "take it up again" in output
    saved = step_of(checkpoints(tmp_path)[-1])
    assert saved < LAST
    assert saved % 7, "the checkpoint is one that was due anyway"
    assert not (only_run(tmp_path) / "summary.json").is_file(), "a terminated run must not look complete"
    train(tmp_path, *overrides, "resume=auto")
    assert identical(final_state(tmp_path), final_state(whole(model)))
    assert metric_steps(tmp_path) == list(range(LAST))


ALONE = ("-c", "from ssl_suite import cli; cli.SIGTERMException = ZeroDivisionError; import train; train.main()")
"""``train.py`` that leaves SIGTERM to Lightning."""


def test_control_lightning_alone_saves_nothing_and_exits_with_0(tmp_path: Path) -> None:
    left = ("callbacks.termination=null", "callbacks.checkpoint.every_n_train_steps=1000", "+logger.csv.flush_every=1",
            "trainer.max_epochs=1000")
    process = start(tmp_path, *MODELS["byol"], *TINY, *left, program=ALONE)
    code, output = kill_at(process, tmp_path, 4, signal.SIGTERM, reached=logged)
    assert code == 0, f"Lightning no longer ends with 0; the docstring of Termination says so: {output[-2000:]}"
    assert not checkpoints(tmp_path)
