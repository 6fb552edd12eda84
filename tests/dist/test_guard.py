"""One process goes wrong, all must stop, and it must be told which; under sharding it alone sees the bad gradient."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import lightning as L
import pytest
import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.utils.data import DataLoader

from ssl_suite.callbacks import FiniteGuard, finite
from ssl_suite.functional.distributed import rank
from ssl_suite.nn.sharding import local, shard
from tests.dist.pair import WORLD, Pair

pytestmark = pytest.mark.dist


class Line(L.LightningModule):
    """A linear map whose loss is none in the third batch of the second process."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(4, 1)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        wrong = (self.global_rank, batch_idx) == (1, 2)
        return self.net(batch["x"]).square().mean() * (torch.nan if wrong else 1.0)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fitted(folder: str, *guards: L.Callback) -> tuple[str, bool]:
    """What stopped the training of this process, on samples numbered from 100 times its rank, and whether its weights are sound."""
    model = Line()
    trainer = L.Trainer(accelerator="cpu", strategy="ddp", devices=WORLD, max_epochs=1, callbacks=list(guards), logger=False,
                        default_root_dir=folder, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
                        use_distributed_sampler=False)
    samples = [{"x": torch.randn(4), "index": 100 * trainer.global_rank + i} for i in range(16)]
    said = ""
    try:
        trainer.fit(model, DataLoader(samples, batch_size=4))  # type: ignore[arg-type]
    except FloatingPointError as error:
        said = str(error)
    return said, bool(model.net.weight.isfinite().all())


def test_each_process_says_whether_its_own_loss_was_bad(pair: Pair, tmp_path: Path) -> None:
    answers = pair(fitted, str(tmp_path), FiniteGuard())
    for process, (own, first, (said, sound)) in enumerate(zip(("finite", "not finite"), (8, 108), answers, strict=True)):
        assert "step 2 is not finite" in said
        assert f"process {process}, whose own loss was {own}, the batch of samples {first}, {first + 1}, " in said
        assert sound
        kept = torch.load(tmp_path / f"bad_batch_rank={process}.pt", weights_only=True)
        assert (kept["step"], kept["rank"], bool(kept["losses"][0].isfinite())) == (2, process, own == "finite")
        assert kept["batches"][0]["index"].tolist() == list(range(first, first + 4))


def test_control_without_the_guard_both_lose_their_weights(pair: Pair, tmp_path: Path) -> None:
    assert pair(fitted, str(tmp_path)) == [("", False), ("", False)]


def guarded(folder: str, ask: bool) -> tuple[bool, bool, bool]:
    """Whether this process's gradients are finite, whether it stopped, and whether its weights stayed as they were."""
    torch.manual_seed(0)
    module = nn.Linear(4, 2)
    shard(module, init_device_mesh("cpu", (WORLD,)), ())
    optimizer = torch.optim.AdamW(module.parameters(), lr=0.1)
    before = local(module.weight).clone()
    good, bad = module(torch.randn(8, 4)).unbind(1)
    (good.sum() + (0.0 * bad).sqrt().sum()).backward()  # row 1 of the weight, which lies on the second process
    fine = bool(local(module.weight.grad).isfinite().all())
    trainer: Any = SimpleNamespace(global_step=3, global_rank=rank(), default_root_dir=folder)
    alone = mock.MagicMock() if ask else mock.patch.object(finite, "mean_over_processes", lambda x: x)
    stopped = False
    with alone:
        try:
            FiniteGuard().on_before_optimizer_step(trainer, module, optimizer)  # type: ignore[arg-type]
            optimizer.step()
        except FloatingPointError:
            stopped = True
    return fine, stopped, torch.equal(local(module.weight), before)


def test_all_stop_before_the_step(pair: Pair, tmp_path: Path) -> None:
    assert pair(guarded, str(tmp_path), True) == [(True, True, True), (False, True, True)]


def test_control_without_asking_one_goes_on(pair: Pair, tmp_path: Path) -> None:
    assert pair(guarded, str(tmp_path), False) == [(True, False, False), (False, True, True)]
