"""E2MC goes on where a run of VICReg stopped: weights, projector and moments."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import Callback

from ssl_suite.config import ConfigError
from ssl_suite.methods.pretraining.e2mc import E2MC, marginal_entropy
from ssl_suite.methods.pretraining.vicreg import VICReg
from tests.parity.test_e2mc import ADAM, SMALL, make
from tests.parity.tiny import Tiny, pictures, views
from tests.unit.methods.test_in_the_trainer import fit

BATCHES = [pictures(12, 20 * i, labels=False) for i in range(3)]


class Start(Callback):
    """Weights and moments as the first batch finds them."""

    def on_train_batch_start(self, trainer: L.Trainer, method: L.LightningModule, batch: Any, batch_idx: int) -> None:
        if not hasattr(self, "weights"):
            self.weights = {name: value.clone() for name, value in method.state_dict().items()}
            self.state = [{k: v.clone() for k, v in s.items()} for s in trainer.optimizers[0].state_dict()["state"].values()]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("vicreg")
    fit(make(VICReg), BATCHES, 2).save_checkpoint(folder / "checkpoints" / "last.ckpt")
    return folder


def test_weights_and_moments_go_on(trained: Path) -> None:
    start = Start()
    torch.manual_seed(1)
    method = E2MC(Tiny(), views(), start=str(trained), **SMALL, **ADAM)
    fit(method, BATCHES, 1, (start,))
    saved = torch.load(trained / "checkpoints" / "last.ckpt", weights_only=False)
    assert all(torch.equal(start.weights[name], value) for name, value in saved["state_dict"].items())
    old = [*saved["optimizer_states"][0]["state"].values()]
    assert len(start.state) == len(old) > 0
    for ours, theirs in zip(start.state, old, strict=True):
        assert ours["step"] == theirs["step"] == 6
        assert torch.equal(ours["exp_avg"], theirs["exp_avg"])
        assert torch.equal(ours["exp_avg_sq"], theirs["exp_avg_sq"])
    assert not torch.equal(method.projector[0].weight, saved["state_dict"]["projector.0.weight"]), "it learns on"


def test_a_resumed_run_does_not_start_over(trained: Path, tmp_path: Path) -> None:
    first = make(start=str(trained))
    fit(first, BATCHES, 1).save_checkpoint(tmp_path / "half.ckpt")
    start = Start()
    fit(make(start=str(trained)), BATCHES, 2, (start,), ckpt_path=tmp_path / "half.ckpt")
    assert torch.equal(start.weights["projector.0.weight"], first.projector[0].weight)
    assert start.state[0]["step"] == 9


@pytest.mark.parametrize("what", ["width", "nothing"])
def test_what_it_cannot_go_on_from_is_named(what: str, trained: Path, tmp_path: Path) -> None:
    source, widths = (trained, {**SMALL, "projection_dim": 4}) if what == "width" else (tmp_path, SMALL)
    with pytest.raises(ConfigError, match=r"init_from=.*model=vicreg.*projection_dim"):
        fit(E2MC(Tiny(), views(), start=str(source), **widths, **ADAM), BATCHES, 1)


def test_entropy_rises_on_samples_not_seen(trained: Path) -> None:
    """Against as many epochs without the two terms, from the same weights and moments."""
    found = []
    for weight in (0.0, 25.0):
        method = make(start=str(trained), entropy=weight, squashed_covariance=weight)
        fit(method, BATCHES, 20)
        with torch.no_grad():
            u = method.eval().projector(method(pictures(200, 500, labels=False))).sigmoid()
        found.append(float(marginal_entropy(u)))
    control, entropy = found
    assert entropy > control + 0.1


def test_held_out_samples_are_scored_without_learning_from_them() -> None:
    method = make(E2MC).eval()
    batch = pictures(12, 0, labels=False)
    found = method.score(batch)
    with torch.no_grad():
        logs = method.step(batch).logs
    assert {name: total.item() / n for name, (total, n) in found.items()} == pytest.approx({k: v.item() for k, v in logs.items()})
    one = method.score({k: v[:1] for k, v in batch.items()})
    assert {total.item() for total, _ in one.values()} == {n for _, n in one.values()} == {0}, "one sample has no entropy"
