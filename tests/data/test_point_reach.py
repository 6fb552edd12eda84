from __future__ import annotations

import numpy as np
import pytest
import torch

from datamodules.images.point_reach import PointReachDataModule
from ssl_suite.data.sources import TransitionSource
from ssl_suite.environments.point_reach import STEP, draw
from ssl_suite.testing.data import check_datamodule


def made(**options) -> PointReachDataModule:
    data = PointReachDataModule(**{"states": 65, "test_states": 20, "batch_size": 16, "val_fraction": 0.0, "mean": [0.0],
                                  "std": [1.0], **options})
    data.setup()
    return data


def everything(data, part="train"):
    source, rows = data.parts[part]
    return source.fetch(rows)


def test_keeps_the_contract_of_data_modules():
    check_datamodule(PointReachDataModule(states=65, test_states=20, batch_size=16), semi=False)


def test_batches_hold_transitions():
    data = made()
    assert (data.spec.shape, data.spec.actions, data.spec.num_samples, data.spec.classes) == ((1, 28, 28), 2, 65, ())
    batch = next(iter(data.train_dataloader()))
    assert torch.equal(data.views(batch, "clean")[0], batch["x"] / 255.0)
    assert batch.keys() == {"x", "next", "action", "y", "index", "epoch"}
    assert batch["next"].shape == batch["x"].shape == (16, 1, 28, 28)
    assert batch["next"].dtype == batch["x"].dtype == torch.uint8
    assert batch["action"].shape == batch["y"].shape == (16, 2)
    assert batch["action"].dtype == batch["y"].dtype == torch.float32
    data.form = "unlabeled"
    assert "y" not in next(iter(data.train_dataloader()))


def test_the_executed_action_explains_what_follows_and_the_expert_does_not():
    """Where the blob is after a step, seen from the pictures alone."""
    batch = {k: v.numpy() for k, v in everything(made(states=10)).items()}
    grid = np.stack(np.meshgrid(np.arange(5, 22.01, 0.25), np.arange(5, 22.01, 0.25), indexing="ij"), -1).reshape(-1, 2)
    blobs = draw(grid, np.full_like(grid, -50.0)).reshape(len(grid), -1)

    def place(x):
        flat = np.clip(x.reshape(-1) / 255.0, 0, 1)
        return grid[np.argmin((np.maximum(blobs - flat, 0) ** 2).sum(1) + 1e-3 * ((blobs - flat) ** 2).sum(1))]

    errors = []
    for x, following, action, right in zip(batch["x"], batch["next"], batch["action"], batch["y"], strict=True):
        step = place(following) - place(x)
        errors.append([np.abs(step - STEP * a).max() for a in (action, right)])
    executed, expert = np.median(errors, axis=0)
    assert executed < 0.4 < expert


def test_seeds_parts_and_noise():
    one, two, other = (everything(made(seed=seed))["x"] for seed in (0, 0, 1))
    assert torch.equal(one, two)
    assert not torch.equal(one, other)
    assert not torch.equal(one[:20], everything(made(), "test")["x"])
    calm = everything(made(noise=0.0))
    torch.testing.assert_close(calm["action"], calm["y"])


@pytest.mark.parametrize("options", [{"states": 0}, {"test_states": 0}, {"noise": -0.1}])
def test_numbers_out_of_range(options):
    with pytest.raises(ValueError, match=f"data.{next(iter(options))}"):
        PointReachDataModule(**options)


def test_arrays_of_transitions_must_fit():
    x, a = np.zeros((4, 1, 2, 2), np.uint8), np.zeros((4, 2), np.float32)
    with pytest.raises(ValueError, match="same transitions"):
        TransitionSource(x, x[:3], a, a)
    with pytest.raises(ValueError, match="same transitions"):
        TransitionSource(x, x, a[:3], a[:3])
