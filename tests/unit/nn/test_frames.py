"""Frames are kept in bounded memory."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from ssl_suite.nn.frames import FrameStore


def filled(count: int, value: float | None = None, **options: Any) -> FrameStore:
    """A store of frames whose descriptor is their number; labels run through 0 to 4 unless given."""
    store = FrameStore(1, 1.0, **{"bins": 4, "capacity": 6, **options})
    for n in range(count):
        store.add(torch.tensor([float(n)]), n % 50 / 10 if value is None else value)
    return store


def numbers(h: torch.Tensor) -> list[int]:
    return sorted(h.flatten().int().tolist())


def test_frames_wait_for_settle() -> None:
    store = filled(20, capacity=100)
    assert not len(store.to_learn()[0])
    store.settle()
    assert numbers(store.to_learn()[0]) == list(range(20))
    assert sorted(store.to_learn()[1].tolist()) == pytest.approx([n / 10 for n in range(20)])


def test_memory_is_bounded_by_bin() -> None:
    store = filled(4000)
    store.settle()
    value = store.to_learn()[1]
    assert len(value) == 4 * 6
    assert [int(((value >= low) & (value < high)).sum()) for low, high in ((0, 1), (1, 2), (2, 3), (3, 9))] == [6] * 4
    assert int(store.seen.sum()) == 4000
    assert not store.fresh


def test_labels_beyond_the_bins_and_below_zero_find_a_place() -> None:
    store = filled(5, value=99.0)
    store.add(torch.tensor([10.0]), -3.0)
    store.settle()
    assert store.seen.tolist() == [1, 0, 0, 5]


def test_the_reservoir_is_uniform() -> None:
    """Each of 60 frames of one bin is kept with probability 1/10, over 100 seeds: 10 +- 3."""
    kept = torch.zeros(60)
    for seed in range(100):
        store = filled(0, seed=seed)
        for n in range(60):
            store.fresh.append((torch.tensor([float(n)]), 0.5))
        store.settle()
        kept[store.to_learn()[0].flatten().long()] += 1
    assert kept.sum() == 100 * 6
    assert kept.max() < 25
    assert abs(kept[:12].mean() - kept[-12:].mean()) < 4, "early and late frames have the same chance"


def test_state_round_trip() -> None:
    one, two = filled(47), filled(0)
    one.settle()
    one.add(torch.tensor([47.0]), 1.0)
    two.load_state_dict(one.state_dict())
    for n in range(48, 90):
        for store in (one, two):
            store.add(torch.tensor([float(n)]), n % 40 / 10)
    for store in (one, two):
        store.settle()
    for a, b in zip(one.to_learn(), two.to_learn(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("options", [{"capacity": 0}, {"bins": 0}])
def test_bad_numbers_are_named(options: dict[str, int]) -> None:
    (name, value), = options.items()
    with pytest.raises(ValueError, match=f"{name}={value}"):
        filled(0, **options)
