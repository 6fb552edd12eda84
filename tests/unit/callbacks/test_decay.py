"""The weight decay rises along half a cosine, and what has none keeps none."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from ssl_suite.callbacks import WeightDecay
from ssl_suite.optim import parameter_groups


def test_decay_is_a_function_of_the_step() -> None:
    optimizer = torch.optim.AdamW(parameter_groups(nn.Linear(3, 2)), weight_decay=0.05)
    found = []
    for step in (0, 50, 100):
        trainer: Any = SimpleNamespace(global_step=step, estimated_stepping_batches=100, optimizers=[optimizer])
        WeightDecay(0.04, 0.4).on_train_batch_start(trainer, None, None, 0)  # type: ignore[arg-type]
        found.append([group["weight_decay"] for group in optimizer.param_groups])
    assert [decay for decay, _ in found] == pytest.approx([0.04, 0.22, 0.4])
    assert [plain for _, plain in found] == [0.0, 0.0, 0.0]


def test_a_first_decay_of_zero_is_refused() -> None:
    with pytest.raises(ValueError, match="first"):
        WeightDecay(0.0, 0.4)
