"""A gradient that is not finite never reaches the weights, and the batch that made it is kept and named."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.utils.data import DataLoader

from ssl_suite.callbacks import FiniteGuard, finite
from ssl_suite.callbacks.finite import named
from tests.faults.runs import identical

BAD_STEP = 3


class Bad(L.LightningModule):
    """A linear map whose loss goes wrong at one batch.

    Args:
        loss: ``nan`` or ``inf`` in the loss, or ``gradient``: a finite loss whose gradient is none.
        at: the batch.
    """

    def __init__(self, loss: str, at: int = BAD_STEP) -> None:
        super().__init__()
        self.net, self.loss, self.at = nn.Linear(4, 1), loss, at
        self.seen: list[Tensor] = []

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        self.seen.append(self.net.weight.detach().clone())
        value = self.net(batch["x"]).square().mean()
        if batch_idx != self.at:
            return value
        factor = {"nan": torch.nan, "inf": torch.inf, "gradient": 0.0}[self.loss]
        return (value * factor).sqrt() if self.loss == "gradient" else value * factor

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=0.1)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder, which is the trainer's own unless it is told another."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def fit(model: Bad, *callbacks: L.Callback, **kwargs: Any) -> None:
    """One epoch of six batches of four samples, numbered from 100."""
    torch.manual_seed(0)
    trainer = L.Trainer(accelerator="cpu", max_epochs=1, callbacks=list(callbacks), logger=False,
                        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, **kwargs)
    trainer.fit(model, DataLoader([{"x": torch.randn(4), "index": 100 + i} for i in range(24)], batch_size=4))


def indices(path: Path) -> list[list[int]]:
    """Samples of the batches in a file."""
    return [batch["index"].tolist() for batch in torch.load(path, weights_only=True)["batches"]]


@pytest.mark.parametrize("loss", ["nan", "inf", "gradient"])
def test_the_run_stops_with_the_weights_of_the_step_before(loss: str) -> None:
    model = Bad(loss)
    with pytest.raises(FloatingPointError, match=rf"step {BAD_STEP} is not finite.*optimizer\.lr"):
        fit(model, FiniteGuard())
    assert len(model.seen) == BAD_STEP + 1
    assert torch.equal(model.net.weight, model.seen[BAD_STEP])
    assert model.net.weight.isfinite().all()


@pytest.mark.parametrize("loss", ["nan", "inf", "gradient"])
def test_control_without_the_guard_the_weights_are_lost(loss: str) -> None:
    model = Bad(loss)
    fit(model)
    assert model.net.weight.isnan().all()


@pytest.mark.parametrize(("loss", "own"), [("nan", "not finite"), ("gradient", "finite")])
def test_the_batch_is_named_and_kept(loss: str, own: str, folder: Path) -> None:
    with pytest.raises(FloatingPointError, match=f"process 0, whose own loss was {own}, the batch of samples 112, 113, 114, 115 "
                                                 r"\(4 in all\) is kept in .*bad_batch_rank=0\.pt"):
        fit(Bad(loss), FiniteGuard())
    kept = torch.load(folder / "bad_batch_rank=0.pt", weights_only=True)
    assert (kept["step"], kept["rank"]) == (BAD_STEP, 0)
    assert kept["losses"][0].isnan() if loss == "nan" else kept["losses"][0] == 0.0
    torch.manual_seed(0)
    data = torch.stack([torch.randn(4) for _ in range(24)])
    assert identical(kept["batches"], [{"x": data[12:16], "index": torch.arange(112, 116)}])
    assert [path.name for path in folder.iterdir()] == ["bad_batch_rank=0.pt"]


def test_a_batch_that_cannot_be_kept_does_not_hide_the_fault(folder: Path) -> None:
    (folder / "bad_batch_rank=0.pt").mkdir()
    with pytest.raises(FloatingPointError, match=r"114, 115 \(4 in all\) could not be kept: .*directory"):
        fit(Bad("nan"), FiniteGuard())


@pytest.mark.parametrize(("loss", "kept"), [("nan", [[108, 109, 110, 111]]),
                                            ("gradient", [[108, 109, 110, 111], [112, 113, 114, 115]])])
def test_accumulated_gradients_are_checked_at_the_optimizer_step(loss: str, kept: list[list[int]], folder: Path) -> None:
    """Of the two batches of a step the one is kept whose loss was bad; both where none was."""
    model = Bad(loss, at=2)
    with pytest.raises(FloatingPointError, match="step 1"):
        fit(model, FiniteGuard(), accumulate_grad_batches=2)
    assert torch.equal(model.net.weight, model.seen[2])
    assert indices(folder / "bad_batch_rank=0.pt") == kept


@pytest.mark.parametrize(("accumulate", "at", "step"), [(1, BAD_STEP, BAD_STEP), (1, 5, 5), (2, BAD_STEP, 1), (2, 5, 2)])
def test_a_flag_read_late_names_its_own_step(accumulate: int, at: int, step: int, folder: Path,
                                             monkeypatch: pytest.MonkeyPatch) -> None:
    """As on an accelerator, where the next step is under way, or the run at its end, when the flag is read."""
    monkeypatch.setattr(finite, "at_hand", lambda x: False)
    model, first = Bad("nan", at), 100 + 4 * at
    with pytest.raises(FloatingPointError, match=f"at step {step} is not finite.* samples {first}, {first + 1}, "):
        fit(model, FiniteGuard(), accumulate_grad_batches=accumulate)
    assert len(model.seen) == min(6, at + 1 + accumulate), "it was read too early or too late"
    assert model.net.weight.isfinite().all()
    assert indices(folder / "bad_batch_rank=0.pt") == [list(range(first, first + 4))]


def test_nothing_is_read_within_a_step() -> None:
    """On a device that cannot answer a step passes; the next, which reads the flag of the first, does not."""
    trainer: Any = SimpleNamespace(global_step=0)
    guard, module = FiniteGuard(), nn.Linear(4, 1)
    with FakeTensorMode():
        weight = nn.Parameter(torch.ones(1, 4, device="cuda"))
        weight.grad = torch.ones(1, 4, device="cuda")
        optimizer = torch.optim.SGD([weight], lr=0.1)

        def step() -> None:
            guard.on_train_batch_start(trainer, module, {"index": torch.arange(4, device="cuda")}, 0)  # type: ignore[arg-type]
            guard.on_before_backward(trainer, module, weight.sum())  # type: ignore[arg-type]
            guard.on_before_optimizer_step(trainer, module, optimizer)  # type: ignore[arg-type]

        step()
        with pytest.raises(DataDependentOutputException):
            step()


def test_labelled_and_unlabelled_samples_are_named_apart() -> None:
    semi = {"labeled": {"index": torch.tensor([7, 3])}, "unlabeled": {"index": torch.arange(20)}}
    assert named([semi]) == "labeled samples 7, 3 (2 in all) and unlabeled samples 0, 1, 2, 3, 4, 5, 6, 7, ... (20 in all)"
    assert named([semi["labeled"]] * 2) == "samples 7, 3, 7, 3 (4 in all)"
    assert named([torch.zeros(3)]) == "samples without an index"
