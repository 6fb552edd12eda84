"""The state of every global generator survives a checkpoint."""

from __future__ import annotations

import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from ssl_suite.callbacks import ResumeState
from ssl_suite.callbacks.resume import rng_state, set_rng_state
from ssl_suite.data.sampler import EpochSampler
from ssl_suite.io.checkpoints import AtomicCheckpointIO
from tests.unit.data.test_sampler import twice_and_never


def numbers() -> list[float]:
    return [random.random(), float(np.random.rand()), float(np.random.randn()), float(torch.rand(())), random.gauss()]  # noqa: NPY002


def test_generators_survive_a_weights_only_file(tmp_path: Path) -> None:
    numbers()
    AtomicCheckpointIO().save_checkpoint(rng_state(), tmp_path / "rng.ckpt")
    expected = numbers()
    assert numbers() != expected
    set_rng_state(AtomicCheckpointIO().load_checkpoint(tmp_path / "rng.ckpt"))
    assert numbers() == expected


def trainer_of(world: int, rank: int = 0) -> Any:
    data = SimpleNamespace(position=0)
    data.seek = lambda position: setattr(data, "position", position)
    return SimpleNamespace(world_size=world, global_rank=rank, datamodule=data,
                           callback_metrics={"train/loss": torch.tensor(2.0)})


def test_position_is_back_before_the_loaders_are_built() -> None:
    old, new, checkpoint = ResumeState(), ResumeState(), {"global_step": 7}
    old.position = 7
    old.on_save_checkpoint(trainer_of(1), None, checkpoint)  # type: ignore[arg-type]
    trainer = trainer_of(1)
    new.on_load_checkpoint(trainer, None, checkpoint)  # type: ignore[arg-type]
    assert trainer.datamodule.position == new.position == 7
    assert new.metrics == {"train/loss": 2.0}


def test_another_number_of_processes_is_refused() -> None:
    checkpoint: dict[str, Any] = {"global_step": 7}
    ResumeState().on_save_checkpoint(trainer_of(1), None, checkpoint)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"1 processes and cannot go on with 2; set trainer\.devices"):
        ResumeState().on_load_checkpoint(trainer_of(2), None, checkpoint)  # type: ignore[arg-type]


@pytest.mark.parametrize(("before", "after", "expected"), [(1, 2, (0, 24)), (2, 1, (24, 0)), (1, 1, (0, 0)), (2, 2, (0, 0))])
def test_control_without_refusing_samples_are_seen_twice_or_never(before: int, after: int, expected: tuple[int, int]) -> None:
    """A position counts the batches of one process: six are 24 samples on one process, 48 on two."""
    old, new, checkpoint = ResumeState(), ResumeState(), {"global_step": 6}
    old.position = 6
    old.on_save_checkpoint(trainer_of(before), None, checkpoint)  # type: ignore[arg-type]
    checkpoint["resume"]["rng"] = [rng_state()] * after  # type: ignore[index]  # what keeps the refusal away
    trainer = trainer_of(after)
    new.on_load_checkpoint(trainer, None, checkpoint)  # type: ignore[arg-type]
    first, then = ([EpochSampler(range(96), 4, rank=rank, world=world) for rank in range(world)] for world in (before, after))
    assert twice_and_never(first, then, trainer.datamodule.position) == expected
