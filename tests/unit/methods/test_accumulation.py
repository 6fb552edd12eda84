"""Two half batches make the step of a whole one: weights, teacher and schedule; with a real Trainer."""

from __future__ import annotations

from functools import partial
from typing import Any

import lightning as L
import pytest
import torch
from torch.utils.data import DataLoader

from ssl_suite.method import Method
from ssl_suite.methods.pretraining.data2vec import Data2Vec
from ssl_suite.methods.pretraining.mae import MAE
from ssl_suite.testing import tiny_backbone, tiny_batch, tiny_spec, tiny_views

SPEC, STEPS = tiny_spec("images"), 4


class Rates(L.Callback):
    """Learning rate and momentum updates, step by step."""

    def __init__(self) -> None:
        self.seen: list[float] = []

    def on_train_batch_end(self, trainer: L.Trainer, module: L.LightningModule, *args: Any) -> None:
        if not self.seen or trainer.global_step == len(self.seen) + 1:
            self.seen.append(trainer.optimizers[0].param_groups[0]["lr"])


class Moves:
    """Counts how often the teachers move."""

    def __init__(self, method: Method) -> None:
        self.steps: list[int] = []
        self.update = method.update_teachers
        method.update_teachers = self  # type: ignore[method-assign, assignment]

    def __call__(self, step: int, total: int) -> None:
        self.steps.append(step)
        self.update(step, total)


def trained(make: Any, accumulate: int) -> tuple[Method, list[float], list[int]]:
    """A method after four optimizer steps on the same 32 samples."""
    torch.manual_seed(0)
    method = make(tiny_backbone("tokens", SPEC), tiny_views(SPEC), optimizer=partial(torch.optim.SGD, lr=0.02))
    whole = [tiny_batch(SPEC, 8, 8 * i) for i in range(STEPS)]
    halves = [{key: value[rows] for key, value in batch.items()} for batch in whole for rows in (slice(0, 4), slice(4, 8))]
    rates, moves = Rates(), Moves(method)
    trainer = L.Trainer(max_epochs=1, accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
                        enable_checkpointing=False, callbacks=[rates], accumulate_grad_batches=accumulate)
    trainer.fit(method, DataLoader(whole if accumulate == 1 else halves, batch_size=None))
    return method, rates.seen, moves.steps


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("make", [MAE, Data2Vec])
def test_two_halves_equal_the_whole(make: Any) -> None:
    one, rates, moves = trained(make, 1)
    two, same_rates, same_moves = trained(make, 2)
    assert rates == same_rates
    assert len(set(rates)) == STEPS
    assert moves == same_moves == ([*range(1, STEPS + 1)] if one.teachers else [])
    for (name, a), b in zip(one.state_dict().items(), two.state_dict().values(), strict=True):
        torch.testing.assert_close(b, a, rtol=1e-4, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")
