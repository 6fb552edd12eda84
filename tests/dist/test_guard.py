"""Under sharding a bad gradient lies on one process alone, and all must stop."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh

from ssl_suite.callbacks import FiniteGuard, finite
from ssl_suite.nn.sharding import local, shard
from tests.dist.pair import WORLD, Pair

pytestmark = pytest.mark.dist


def guarded(ask: bool) -> tuple[bool, bool, bool]:
    """Whether this process's gradients are finite, whether it stopped, and whether its weights stayed as they were."""
    torch.manual_seed(0)
    module = nn.Linear(4, 2)
    shard(module, init_device_mesh("cpu", (WORLD,)), ())
    optimizer = torch.optim.AdamW(module.parameters(), lr=0.1)
    before = local(module.weight).clone()
    good, bad = module(torch.randn(8, 4)).unbind(1)
    (good.sum() + (0.0 * bad).sqrt().sum()).backward()  # row 1 of the weight, which lies on the second process
    fine = bool(local(module.weight.grad).isfinite().all())
    trainer: Any = SimpleNamespace(global_step=3)
    alone = mock.MagicMock() if ask else mock.patch.object(finite, "mean_over_processes", lambda x: x)
    stopped = False
    with alone:
        try:
            FiniteGuard().on_before_optimizer_step(trainer, module, optimizer)  # type: ignore[arg-type]
            optimizer.step()
        except FloatingPointError:
            stopped = True
    return fine, stopped, torch.equal(local(module.weight), before)


def test_all_stop_before_the_step(pair: Pair) -> None:
    assert pair(guarded, True) == [(True, True, True), (False, True, True)]


def test_control_without_asking_one_goes_on(pair: Pair) -> None:
    assert pair(guarded, False) == [(True, False, False), (False, True, True)]
