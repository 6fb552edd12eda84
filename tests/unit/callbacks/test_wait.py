"""The share of the time that training waits for its data."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from ssl_suite.callbacks import DataWait, wait

Pass = Callable[[float], None]


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> Pass:
    """Lets that many seconds pass on the clock that the callback reads, in no time."""
    now = [0.0]
    monkeypatch.setattr(wait, "perf_counter", lambda: now[0])

    def forward(seconds: float) -> None:
        now[0] += seconds

    return forward


class Reading(Dataset[Tensor]):
    """Eight samples, each of which takes ``seconds`` to read."""

    def __init__(self, passes: Pass, seconds: float) -> None:
        self.passes, self.seconds = passes, seconds

    def __len__(self) -> int:
        return 8

    def __getitem__(self, i: int) -> Tensor:
        self.passes(self.seconds)
        return torch.ones(4)


class Step(L.LightningModule):
    """A linear map whose training step takes 20 ms, its validation step a second."""

    def __init__(self, passes: Pass) -> None:
        super().__init__()
        self.net, self.passes = nn.Linear(4, 1), passes

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        self.passes(0.02)
        return self.net(batch).square().mean()

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        self.passes(1.0)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def share(passes: Pass, seconds: float, **kwargs: Any) -> float:
    """``train/data_wait`` of the last epoch over batches of two samples that take that long each."""
    trainer = L.Trainer(accelerator="cpu", callbacks=[DataWait()], logger=False, enable_checkpointing=False,
                        enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0, **kwargs)
    trainer.fit(Step(passes), DataLoader(Reading(passes, seconds), batch_size=2), DataLoader(Reading(passes, 0.0), batch_size=2))
    return float(trainer.callback_metrics["train/data_wait"])


@pytest.mark.parametrize(("seconds", "expected"), [(0.05, 100 / 120), (0.01, 0.5), (0.0, 0.0)])
def test_reading_counts_and_steps_and_validation_do_not(passes: Pass, seconds: float, expected: float) -> None:
    assert share(passes, seconds, max_epochs=2, val_check_interval=0.5) == pytest.approx(expected)


def test_accumulated_batches_count_one_by_one(passes: Pass) -> None:
    assert share(passes, 0.05, max_epochs=1, accumulate_grad_batches=2) == pytest.approx(100 / 120)


def test_a_slow_loader_is_told_from_a_fast_one_by_the_real_clock() -> None:
    slow, fast = (share(time.sleep, seconds, max_epochs=1, limit_val_batches=0) for seconds in (0.05, 0.0))
    assert slow > fast + 0.2
