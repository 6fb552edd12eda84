"""One data set after the other: what the plateau keeps, what the next run begins with, and the rate it goes on at."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from ssl_suite.callbacks import Plateau
from ssl_suite.config import ConfigError
from ssl_suite.methods.pretraining.simsiam import SimSiam
from ssl_suite.methods.pretraining.vicreg import VICReg
from ssl_suite.optim import Cosine, Infinite
from tests.parity.tiny import Tiny, pictures, views
from tests.unit.methods.test_in_the_trainer import fit

BATCHES = [pictures(12, 20 * i, labels=False) for i in range(5)]
INFINITE = {"warmup": 0.1, "cooldown": 0.4, "plateau": 0.75, "constant": 0.5, "final": 0.05}
RATE = 0.01


class Watch(Callback):
    """Rate at every step; weights and moments as the first batch and as step ``at`` find them."""

    def __init__(self, at: int = 0) -> None:
        self.at, self.rates, self.found = at, dict[int, float](), dict[int, tuple[dict[str, Tensor], list[dict[str, Tensor]]]]()

    def on_train_batch_start(self, trainer: L.Trainer, method: L.LightningModule, batch: Any, batch_idx: int) -> None:
        step, optimizer = trainer.global_step, trainer.optimizers[0]
        self.rates[step] = optimizer.param_groups[0]["lr"]
        if step == self.at or len(self.rates) == 1:
            weights = {name: value.clone() for name, value in method.state_dict().items()}
            self.found[step] = weights, [{k: v.clone() for k, v in s.items()} for s in optimizer.state_dict()["state"].values()]


def make(kind: Any = VICReg, width: int = 8, **schedule: Any) -> Any:
    torch.manual_seed(schedule.pop("seed", 0))
    made = Cosine() if schedule.pop("cosine", False) else Infinite(**{**INFINITE, **schedule})
    return kind(Tiny(), views(), hidden_dim=32, projection_dim=width, optimizer=partial(torch.optim.AdamW, lr=RATE), schedule=made)


State = tuple[dict[str, Tensor], list[dict[str, Tensor]]]


def same(first: State, other: State) -> bool:
    return all(torch.equal(first[0][k], v) for k, v in other[0].items()) and len(first[1]) == len(other[1]) > 0 and all(
        torch.equal(a[k], v) for a, b in zip(first[1], other[1], strict=True) for k, v in b.items())


def test_the_next_data_set_begins_with_weights_and_moments_of_the_plateau(tmp_path: Path) -> None:
    first, later, path = Watch(at=15), Watch(), tmp_path / "plateau.ckpt"
    method = make()
    fit(method, BATCHES, 4, (first, Plateau(str(path), share=0.75)))  # 20 steps, 15 of them before annealing
    assert first.rates[14] == first.rates[15] == RATE * 0.5 > first.rates[16]
    fit(make(first=False, seed=1), BATCHES, 4, (later, Plateau(str(tmp_path / "next.ckpt"), str(path), share=0.75)))
    assert same(later.found[0], first.found[15])
    assert not torch.equal(method.projector[0].weight, later.found[0][0]["projector.0.weight"]), "annealing went on learning"
    assert later.rates[0] == later.rates[14] == RATE * 0.5, "no warm-up, no cool-down"
    assert torch.load(path, weights_only=True)["global_step"] == 15


def test_without_a_plateau_the_end_is_kept(tmp_path: Path) -> None:
    method = make(cosine=True)
    fit(method, BATCHES, 2, (Plateau(str(tmp_path / "end.ckpt")),))
    kept = torch.load(tmp_path / "end.ckpt", weights_only=True)
    assert kept["global_step"] == 10
    assert all(torch.equal(kept["state_dict"][name], value) for name, value in method.state_dict().items())


def test_it_is_kept_once_where_batches_are_accumulated(tmp_path: Path) -> None:
    fit(make(), [*BATCHES, *BATCHES[:3]], 2, (Plateau(str(tmp_path / "plateau.ckpt"), share=0.75),), accumulate_grad_batches=2)
    assert torch.load(tmp_path / "plateau.ckpt", weights_only=True)["global_step"] == 6


@pytest.mark.parametrize("stop", [1, 2, 4, 7])
def test_the_curve_is_the_same_after_a_stop_in_any_phase(stop: int, tmp_path: Path) -> None:
    """Of 16 steps, 3 warm up, 3 cool down and 4 anneal; an epoch has 2."""
    whole, parts, path = Watch(), Watch(), str(tmp_path / "plateau.ckpt")
    fit(make(warmup=0.2), BATCHES[:2], 8, (whole, Plateau(path, share=0.75)))
    expected = torch.load(path, weights_only=True)["state_dict"]

    class Stop(Callback):
        def on_train_epoch_end(self, trainer: L.Trainer, method: L.LightningModule) -> None:
            if trainer.current_epoch == stop - 1:
                trainer.save_checkpoint(tmp_path / "stopped.ckpt")
                raise KeyboardInterrupt

    with pytest.raises((KeyboardInterrupt, SystemExit)):
        fit(make(warmup=0.2), BATCHES[:2], 8, (parts, Plateau(path, share=0.75), Stop()))
    again = Plateau(path, str(tmp_path / "none.ckpt"), share=0.75)
    fit(make(warmup=0.2, seed=3), BATCHES[:2], 8, (parts, again), ckpt_path=tmp_path / "stopped.ckpt")
    assert parts.rates == whole.rates
    assert all(torch.equal(expected[name], value) for name, value in torch.load(path, weights_only=True)["state_dict"].items())


@pytest.mark.parametrize(("other", "said"), [({"width": 4}, "size mismatch"), ({"kind": SimSiam}, "predictor|Missing key")])
def test_a_state_of_another_method_is_refused(other: dict[str, Any], said: str, tmp_path: Path) -> None:
    path = str(tmp_path / "plateau.ckpt")
    fit(make(), BATCHES, 1, (Plateau(path),))
    with pytest.raises(ConfigError, match=rf"callbacks\.plateau\.start=.*(?s:.*)({said})"):
        fit(make(**other), BATCHES, 1, (Plateau(str(tmp_path / "other.ckpt"), path),))


def test_what_is_not_there_or_makes_no_sense_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"callbacks\.plateau\.start=.*none\.ckpt"):
        fit(make(), BATCHES, 1, (Plateau(str(tmp_path / "a.ckpt"), str(tmp_path / "none.ckpt")),))
    with pytest.raises(ValueError, match=r"share=0\.0 must lie in \(0, 1\]"):
        Plateau("x", share=0.0)
