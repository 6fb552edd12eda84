"""Every method trains on two CPU processes: data parallel, and sharded."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from ssl_suite.config import locate
from ssl_suite.io.checkpoints import AtomicCheckpointIO, newest_checkpoint
from ssl_suite.summary import check_summary
from tests.configs import raw, trained
from tests.dist.pair import Pair
from tests.runs import few_labels, run, tiny_data

pytestmark = pytest.mark.dist


def overrides(name: str, trainer: str, folder: Path) -> tuple[str, ...]:
    tags = locate(raw("model", name)["model"]["_target_"], name).tags
    return (f"model={name}", *tiny_data(tags.modalities[0], folder, tags.target), *few_labels(tags), f"trainer={trainer}",
            "trainer.accelerator=cpu", "trainer.devices=2")


def fit(folder: str, *given: str) -> None:
    """The body of a process."""
    run(Path(folder), *given)


@pytest.mark.parametrize("trainer", ["ddp", "fsdp"])
@pytest.mark.parametrize("name", trained())
def test_two_steps(name: str, trainer: str, pair: Pair, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    pair(fit, str(folder), *overrides(name, trainer, tmp_path))
    check_summary(json.loads((folder / "summary.json").read_text()))
    content = AtomicCheckpointIO().load_checkpoint(newest_checkpoint(folder))
    assert content["global_step"] == 2
    assert all(type(value) is torch.Tensor and value.isfinite().all() for value in content["state_dict"].values())


def test_sharded_weights_equal_data_parallel_ones(pair: Pair, tmp_path: Path) -> None:
    weights = []
    for trainer in ("ddp", "fsdp"):
        pair(fit, str(tmp_path / trainer), *overrides("mae", trainer, tmp_path))
        weights.append(AtomicCheckpointIO().load_checkpoint(newest_checkpoint(tmp_path / trainer))["state_dict"])
    assert weights[0].keys() == weights[1].keys()
    for name, value in weights[0].items():
        torch.testing.assert_close(weights[1][name], value, rtol=1e-4, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")
