"""A run that is ended again and again leaves as many checkpoints as one that is not, and none of them by halves."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch import Tensor, nn
from torch.utils.data import DataLoader

from ssl_suite.callbacks import ResumeState, termination
from ssl_suite.callbacks.termination import Termination
from ssl_suite.io import checkpoints
from ssl_suite.io.checkpoints import AtomicCheckpointIO, intact


class Line(L.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(4, 1)

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        return self.net(batch).square().mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Ask(Termination):
    """Is asked to end at one step."""

    def __init__(self, step: int) -> None:
        super().__init__()
        self.step = step

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
        self.asked = trainer.global_step == self.step
        super().on_train_batch_end(trainer, *args)


def fit(folder: Path, newest: Path | None, *callbacks: L.Callback) -> None:
    """One epoch of 16 steps, or what is left of it; every second step a checkpoint is due."""
    keeper = ModelCheckpoint(folder, "step={step:02d}", "step", mode="max", save_top_k=2, every_n_train_steps=2,
                             auto_insert_metric_name=False, enable_version_counter=False)
    trainer = L.Trainer(accelerator="cpu", max_epochs=1, callbacks=[ResumeState(), *callbacks, keeper], logger=False,
                        plugins=[AtomicCheckpointIO()], enable_progress_bar=False, enable_model_summary=False)
    trainer.fit(Line(), DataLoader(torch.randn(64, 4), batch_size=4), ckpt_path=newest)


def stopped(folder: Path, steps: tuple[int, ...]) -> list[str]:
    """Checkpoints after starts that were ended at one step after another."""
    newest = None
    for step in steps:
        with suppress(SIGTERMException):
            fit(folder, newest, Ask(step))
        newest = max(folder.glob("*.ckpt"))
        assert torch.load(newest, weights_only=True)["global_step"] == step, "the run did not save where it was ended"
    return sorted(path.name for path in folder.glob("*.ckpt"))


@pytest.mark.filterwarnings("ignore")
def test_what_is_saved_at_the_end_counts_among_the_newest(tmp_path: Path) -> None:
    assert stopped(tmp_path, (3, 5, 9)) == ["step=08.ckpt", "step=09.ckpt"]


@pytest.mark.filterwarnings("ignore")
def test_control_without_counting_they_pile_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def beside(trainer: L.Trainer, keeper: ModelCheckpoint) -> None:
        trainer.save_checkpoint(keeper.format_checkpoint_name({"epoch": 0, "step": trainer.global_step}))

    monkeypatch.setattr(termination, "keep", beside)
    assert len(stopped(tmp_path, (3, 5, 9))) > 2


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Ctrl-C interrupts this process, even one in the background, which inherits that it does not."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def send(number: signal.Signals) -> None:
    """A signal to this process, which must not die of it."""
    assert signal.getsignal(number) is not signal.SIG_DFL
    os.kill(os.getpid(), number)


class Signal(L.Callback):
    """SIGTERM from outside, in the third step."""

    def on_before_backward(self, trainer: L.Trainer, *args: Any) -> None:
        if trainer.global_step == 2:
            send(signal.SIGTERM)


class Slow:
    """A file that is written so slowly that a signal comes in between."""

    def __init__(self, file: Any, number: signal.Signals) -> None:
        self.file, self.number, self.written = file, number, 0

    def write(self, content: Any) -> int:
        self.written += 1
        if self.written == 3:
            self.flush()
            send(self.number)
        return self.file.write(content)

    def flush(self) -> None:
        self.file.flush()


def signalled_twice(folder: Path, number: signal.Signals, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Files of a run that gets SIGTERM in its third step and a second signal while what it did is saved."""
    save = torch.save

    def slowly(content: Any, file: Any) -> None:
        save(content, Slow(file, number) if content["global_step"] == 3 else file)

    monkeypatch.setattr(checkpoints.torch, "save", slowly)
    with pytest.raises((SIGTERMException, SystemExit)):  # the latter is Lightning's end of a Ctrl-C
        fit(folder, None, Termination(), Signal())
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.usefixtures("interruptible")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("number", "left"), [(signal.SIGTERM, ["step=02.ckpt", "step=03.ckpt"]),
                                              (signal.SIGINT, ["step=02.ckpt"])])
def test_a_second_signal_leaves_no_half_of_a_file(number: signal.Signals, left: list[str], tmp_path: Path,
                                                  monkeypatch: pytest.MonkeyPatch) -> None:
    """SIGTERM waits until all is written; the user's Ctrl-C does not, and what was there before stays."""
    assert signalled_twice(tmp_path, number, monkeypatch) == left
    for name in left:
        assert intact(tmp_path / name)
        assert torch.load(tmp_path / name, weights_only=True)["global_step"] == int(name[5:7])


def at_once(self: Termination, number: int, frame: Any) -> None:
    """A handler that lets nothing be finished the second time."""
    if self.asked:
        raise SystemExit(128 + number)
    self.asked = True


@pytest.mark.filterwarnings("ignore")
def test_control_without_waiting_the_step_is_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Termination, "_note", at_once)
    assert signalled_twice(tmp_path, signal.SIGTERM, monkeypatch) == ["step=02.ckpt"]


@pytest.mark.usefixtures("interruptible")
@pytest.mark.filterwarnings("ignore")
def test_control_without_whole_files_half_of_one_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoints, "whole_file", lambda path: path.open("wb"))
    assert signalled_twice(tmp_path, signal.SIGINT, monkeypatch) == ["step=02.ckpt", "step=03.ckpt"]
    assert intact(tmp_path / "step=02.ckpt")
    assert not intact(tmp_path / "step=03.ckpt")
