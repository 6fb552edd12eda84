"""A gradient that is not finite never reaches the weights."""

from __future__ import annotations

from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from ssl_suite.callbacks import FiniteGuard

BAD_STEP = 3


class Bad(L.LightningModule):
    """A linear map whose loss goes wrong at one step.

    Args:
        loss: ``nan`` or ``inf`` in the loss, or ``gradient``: a finite loss whose gradient is none.
    """

    def __init__(self, loss: str) -> None:
        super().__init__()
        self.net, self.loss = nn.Linear(4, 1), loss
        self.seen: list[Tensor] = []

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        self.seen.append(self.net.weight.detach().clone())
        value = self.net(batch).square().mean()
        if batch_idx != BAD_STEP:
            return value
        factor = {"nan": torch.nan, "inf": torch.inf, "gradient": 0.0}[self.loss]
        return (value * factor).sqrt() if self.loss == "gradient" else value * factor

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=0.1)


def fit(model: Bad, *callbacks: L.Callback, **kwargs: Any) -> None:
    torch.manual_seed(0)
    trainer = L.Trainer(accelerator="cpu", max_epochs=1, callbacks=list(callbacks), logger=False,
                        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, **kwargs)
    trainer.fit(model, DataLoader(torch.randn(24, 4), batch_size=4))


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


def test_accumulated_gradients_are_checked_at_the_optimizer_step() -> None:
    model = Bad("nan")
    with pytest.raises(FloatingPointError, match="step 1"):
        fit(model, FiniteGuard(), accumulate_grad_batches=2)
    assert torch.equal(model.net.weight, model.seen[2])
