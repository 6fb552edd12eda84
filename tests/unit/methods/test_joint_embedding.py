"""Rates, queues and directions of the joint-embedding methods in a real Trainer, and over a resume."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import Callback
from torch import nn

from ssl_suite.config import ConfigError
from ssl_suite.method import Method
from ssl_suite.methods.pretraining.barlow_twins import BarlowTwins
from ssl_suite.methods.pretraining.lejepa import LeJEPA
from ssl_suite.methods.pretraining.moco_v2 import MoCoV2
from ssl_suite.methods.pretraining.nnclr import NNCLR
from ssl_suite.methods.pretraining.simsiam import SimSiam
from ssl_suite.methods.pretraining.swav import SwAV
from ssl_suite.optim import Cosine
from tests.parity.test_swav import AnySize, small_and_large
from tests.parity.tiny import pictures
from tests.runs import run
from tests.unit.methods.test_in_the_trainer import Save, fit

ADAM = {"optimizer": partial(torch.optim.AdamW, lr=0.01), "schedule": Cosine(warmup=0.0)}
SMALL = {"hidden_dim": 16, "projection_dim": 8}
MAKE: dict[str, Any] = {
    "moco_v2": partial(MoCoV2, queue_size=20, **SMALL), "nnclr": partial(NNCLR, queue_size=20, predictor_dim=8, **SMALL),
    "swav": partial(SwAV, num_prototypes=4, local_crops=1, queue_size=10, queue_start=0.3, frozen=0.3, **SMALL),
    "lejepa": partial(LeJEPA, num_directions=4, local_crops=1, **SMALL), "simsiam": partial(SimSiam, predictor_dim=4, **SMALL)}
BATCHES = [pictures(6, 10 * i, labels=False) for i in range(4)]


def make(name: str) -> Method:
    torch.manual_seed(0)
    method: Method = MAKE[name](AnySize(), small_and_large(), **ADAM)
    return method


class Watch(Callback):
    """Loss of every batch, and rate and mean weight of a module at its start."""

    def __init__(self, module: str | None = None) -> None:
        self.module, self.losses = module, list[float]()
        self.rates: list[set[float]] = []
        self.weights: list[float] = []

    def on_train_batch_start(self, trainer, method, batch, batch_idx) -> None:
        if self.module:
            own = [*getattr(method, self.module).parameters()]
            ids = {id(p) for p in own}
            groups = trainer.optimizers[0].param_groups
            self.rates.append({g["lr"] for g in groups if ids & {id(p) for p in g["params"]}})
            self.weights.append(float(own[0].detach().sum()))

    def on_train_batch_end(self, trainer, method, outputs, batch, batch_idx) -> None:
        self.losses.append(float(outputs["loss"]))


def test_the_predictor_of_simsiam_keeps_its_rate_while_all_else_slows_down() -> None:
    predictor, rest = Watch("predictor"), Watch("projector")
    fit(make("simsiam"), BATCHES, 2, (predictor, rest))
    assert predictor.rates == [{0.01}] * 8
    assert [min(r) for r in rest.rates] == pytest.approx([0.01 * Cosine(warmup=0.0)(step, 8) for step in range(8)])


def test_the_prototypes_of_swav_rest_for_their_share_of_the_run() -> None:
    watch = Watch("prototypes")
    fit(make("swav"), BATCHES, 2, (watch,))
    assert [rate == {0.0} for rate in watch.rates] == [True] * 3 + [False] * 5
    assert [w == watch.weights[0] for w in watch.weights] == [True] * 4 + [False] * 4


@pytest.mark.parametrize("name", MAKE)
def test_a_resumed_run_equals_the_uninterrupted_one(name: str, tmp_path: Path) -> None:
    whole, part = Watch(), Watch()
    first, second = make(name), make(name)
    for module in second.modules():
        if isinstance(module, nn.Linear):
            nn.init.zeros_(module.weight)
    fit(first, BATCHES, 2, (whole, Save(tmp_path / "at.ckpt", 4)))
    fit(second, BATCHES, 2, (part,), ckpt_path=tmp_path / "at.ckpt")
    assert part.losses == whole.losses[4:]
    for key, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[key]), key


def test_the_loss_of_the_library_stays_outside_of_autocast() -> None:
    seen: list[tuple[bool, torch.dtype]] = []

    def look(module: nn.Module, given: Any) -> None:
        if type(module).__name__.endswith("Loss"):
            seen.append((torch.is_autocast_enabled("cpu"), given[0].dtype))

    method = BarlowTwins(AnySize(), small_and_large(), **SMALL)
    with nn.modules.module.register_module_forward_pre_hook(look), torch.autocast("cpu", torch.bfloat16):
        method.step(BATCHES[0])
    assert set(seen) == {(False, torch.float32)}


def test_supcon_is_refused_where_there_are_no_classes(tmp_path: Path) -> None:
    np.savez(tmp_path / "bare.npz", series=np.zeros((20, 2, 16), np.float32))
    with pytest.raises(ConfigError, match="needs class labels"):
        run(tmp_path / "run", "model=supcon", "data=series_arrays", f"data.path={tmp_path / 'bare.npz'}")
