"""Data sets that come one after the other: parts, replayed samples, one standardisation."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from datamodules.continual import ContinualDataModule
from datamodules.images.digits import DigitsDataModule, changed
from ssl_suite.config import ConfigError
from ssl_suite.data.sources import ArraySource, JoinedSource


def digits(**options: Any) -> DigitsDataModule:
    return DigitsDataModule(batch_size=40, steps_per_epoch=3, **options)


def sequence(at: str, **options: Any) -> ContinualDataModule:
    sets = {"upright": digits(), "turned": digits(domain="turned"), "inverted": digits(domain="inverted")}
    data = ContinualDataModule(sets, at=at, **options)
    data.form = "unlabeled"
    data.setup()
    return data


def test_domains_change_pictures_as_they_say() -> None:
    x = np.arange(64, dtype=np.uint8).reshape(1, 1, 8, 8)
    assert np.array_equal(changed(x, "turned")[0, 0], np.rot90(x[0, 0]))
    assert np.array_equal(changed(x, "inverted"), 255 - x)
    assert np.array_equal(changed(x, "dimmed"), x // 2)
    assert not np.array_equal(changed(x, "tilted"), x)
    with pytest.raises(ValueError, match=r"data\.domain=sideways is none of upright"):
        changed(x, "sideways")


def test_parts_are_those_of_the_set_at_hand_and_statistics_those_of_the_first() -> None:
    data, own = sequence("inverted"), digits(domain="inverted")
    own.setup()
    assert np.array_equal(data.parts["test"][0].fetch(np.arange(5))["x"], own.parts["test"][0].fetch(np.arange(5))["x"])
    assert (data.spec.mean, data.spec.std) == (sequence("upright").spec.mean, sequence("upright").spec.std)
    assert data.spec.mean != own.spec.mean
    assert np.array_equal(data.split()["train"], own.split()["train"])
    assert data.spec.num_samples == 3 * own.spec.num_samples


@pytest.mark.parametrize(("replay", "old"), [(0.0, 0), (0.25, 10)])
def test_a_batch_holds_its_share_of_old_samples(replay: float, old: int) -> None:
    data = sequence("inverted", replay=replay, buffer=30)
    size = len(data.parts["train"][0])
    batches = list(data.train_dataloader())
    assert len(batches) == 3
    for batch in batches:
        index = batch["index"]
        assert len(index) == 40
        assert int((index >= size).sum()) == old
        assert "y" not in batch
        mean = batch["x"].float().mean((1, 2, 3))
        assert (mean[index < size] > 127).all(), "the set at hand is inverted"
        assert (mean[index >= size] < 127).all(), "older ones are not"
    assert len(data.old) == 60
    assert set(data.old[:30]) <= set(size + sequence("upright").parts["train"][1]), "held-out samples are not replayed"


def test_the_first_set_replays_nothing() -> None:
    data = sequence("upright", replay=0.5)
    assert all((batch["index"] < len(data.parts["train"][0])).all() for batch in data.train_dataloader())


def test_bad_sequences_are_refused() -> None:
    with pytest.raises(ValueError, match=r"data\.at=turnt is none of the sets; did you mean 'turned'"):
        ContinualDataModule({"turned": digits()}, at="turnt")
    with pytest.raises(ValueError, match=r"data\.replay=1\.5"):
        sequence("upright", replay=1.5)
    other = ContinualDataModule({"a": digits(), "b": digits(size=16)}, at="b")
    with pytest.raises(ValueError, match=r"shape \(1, 8, 8\), another images of shape \(1, 16, 16\)"):
        other.setup()
    labelled = ContinualDataModule({"a": digits()}, at="a")
    labelled.setup()
    with pytest.raises(ConfigError, match="no labels to learn from"):
        labelled.train_dataloader()


def test_joined_sources_keep_order_and_lengths() -> None:
    short, long = np.arange(12.0).reshape(3, 1, 4), np.arange(20.0).reshape(2, 1, 10)
    joined = JoinedSource([ArraySource(short), ArraySource(long, lengths=np.array([10, 7]))])
    batch = joined.fetch(np.array([4, 0, 3]))
    assert batch["x"].shape == (3, 1, 10)
    assert batch["length"].tolist() == [7, 4, 10]
    assert torch.equal(batch["x"][1, 0, :4], torch.from_numpy(short[0, 0]))
    assert torch.equal(batch["x"][2, 0], torch.from_numpy(long[0, 0]))
    assert len(joined) == 5
