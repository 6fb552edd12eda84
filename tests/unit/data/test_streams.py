"""Streams: what arrives, in which order, and that nothing but the seed decides."""

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from ssl_suite.data import orders
from ssl_suite.data.sources import ArraySource
from ssl_suite.data.streams import CLEAN, ShiftStreams
from ssl_suite.testing import tiny_spec
from ssl_suite.views.corruptions import Corruption
from ssl_suite.views.plan import to_float

SPEC = tiny_spec("images")
N, K = 120, 3
SHIFTS = ["fog", "contrast"]


@pytest.fixture(scope="module")
def data() -> Any:
    """120 pictures of 8x8 pixels in 3 classes, of which the test part leaves out the first 20."""
    rng = np.random.default_rng(0)
    source = ArraySource(rng.integers(0, 256, (N, 1, 8, 8)).astype(np.uint8), np.arange(N) % K)
    return SimpleNamespace(parts={"train": (source, np.arange(20)), "test": (source, np.arange(20, N))})


def streams(**given: Any) -> ShiftStreams:
    return ShiftStreams(**{"shifts": SHIFTS, "family": "digits", "batch_size": 16, **given})


def arrived(data: Any, stream: ShiftStreams) -> list[list[dict[str, Any]]]:
    return [list(stream.read(data, SPEC, segment)) for segment in stream.segments(data, SPEC)]


def labels(data: Any, segment: Any) -> np.ndarray:
    return data.parts["test"][0].targets[segment.rows]


def changes(y: np.ndarray) -> int:
    """How often the class is another than the one before."""
    return int((y[1:] != y[:-1]).sum())


@pytest.mark.parametrize("order", ["iid", "sorted", "correlated"])
def test_every_sample_comes_once_under_each_shift(data: Any, order: Any) -> None:
    segments = streams(order=order).segments(data, SPEC)
    assert [s.name for s in segments] == SHIFTS
    for segment in segments:
        assert sorted(segment.rows) == list(range(20, N))
        assert segment.pairs == ((segment.name, 5),)
        assert not segment.which.any()


def test_iid_is_one_shuffled_order_for_all_shifts(data: Any) -> None:
    first, second = streams(seed=3).segments(data, SPEC)
    assert first.rows.tolist() == second.rows.tolist() == np.random.default_rng(3).permutation(np.arange(20, N)).tolist()
    assert changes(labels(data, first)) > 40
    limited = streams(seed=3, limit=30).segments(data, SPEC)[0]
    assert limited.rows.tolist() == first.rows[:30].tolist()


def test_sorted_brings_class_after_class(data: Any) -> None:
    for segment in streams(order="sorted").segments(data, SPEC):
        assert changes(labels(data, segment)) == K - 1


def test_correlation_falls_with_delta() -> None:
    y = np.random.default_rng(0).permutation(np.arange(2000) % 20)
    mean = [float(np.mean([changes(y[orders.dirichlet(y, delta, np.random.default_rng(seed))]) for seed in range(5)]))
            for delta in (0.001, 0.1, 1.0, 100.0)]
    assert mean == sorted(mean)
    assert mean[0] < 40, "nearly every class at once"
    assert mean[-1] > 350, "twenty slots of twenty classes"
    for seed in range(3):
        assert sorted(orders.dirichlet(y, 0.1, np.random.default_rng(seed))) == list(range(2000))


def test_dirichlet_slots_hold_the_shares_that_were_drawn() -> None:
    """With one slot per class, class c fills slot s with the share that its draw gives it."""
    y = np.repeat(np.arange(4), 1000)
    order = orders.dirichlet(y, 0.5, np.random.default_rng(7))
    rng = np.random.default_rng(7)
    shares = np.array([rng.dirichlet([0.5] * 4) for _ in range(4)])
    sizes = np.round(shares.sum(0) * 1000).astype(int)
    inside = np.split(y[order], np.cumsum(sizes)[:-1])
    counts = np.array([[np.sum(slot == c) for slot in inside] for c in range(4)])
    assert np.abs(counts - 1000 * shares).max() <= 4


def test_label_shift_changes_the_frequencies_of_classes(data: Any) -> None:
    first, second = streams(order="label_shift", imbalance=8.0).segments(data, SPEC)
    counts = sorted(Counter(labels(data, first).tolist()).values(), reverse=True)
    assert counts[0] / counts[-1] == pytest.approx(8.0, rel=0.1)
    assert counts[0] >= 33, "the largest part of that shape"
    assert counts[1] / counts[2] == pytest.approx(counts[0] / counts[1], rel=0.15)
    assert first.rows.tolist() == second.rows.tolist(), "the frequencies stay when the shift changes"
    assert len(set(first.rows)) == len(first)
    assert changes(labels(data, first)) > len(first) // 5, "shuffled"
    assert len(streams(order="label_shift", imbalance=1.0).segments(data, SPEC)[0]) == 33 * K


def test_gradual_goes_up_and_down(data: Any) -> None:
    segments = streams(order="gradual", shifts=["fog", CLEAN]).segments(data, SPEC)
    assert [s.name for s in segments] == [f"fog:{s}" for s in (1, 2, 3, 4, 5, 4, 3, 2, 1)] + [CLEAN]
    assert [s.pairs[0][1] for s in segments[:9]] == [1, 2, 3, 4, 5, 4, 3, 2, 1]
    drawn = next(streams(order="gradual").read(data, SPEC, segments[2]))
    plain = next(streams(severity=3).batches(data, SPEC, "fog"))
    assert torch.equal(drawn["x"], plain["x"])


def test_mixed_holds_every_sample_under_every_shift(data: Any) -> None:
    stream = streams(order="mixed", shifts=[*SHIFTS, CLEAN])
    (segment,) = stream.segments(data, SPEC)
    assert segment.name == "mixed"
    pairs = set(zip(segment.which.tolist(), segment.rows.tolist(), strict=True))
    assert len(segment) == len(pairs) == 3 * 100
    assert all(0.1 < np.mean(segment.which[:60] == i) < 0.6 for i in range(3)), "shuffled"
    alone = {name: {int(i): x for b in streams().batches(data, SPEC, name) for i, x in zip(b["index"], b["x"], strict=True)}
             for name in (*SHIFTS, CLEAN)}
    at = 0
    for batch in stream.read(data, SPEC, segment):
        for i, x, y in zip(batch["index"], batch["x"], batch["y"], strict=True):
            assert segment.rows[at] == i
            assert y == int(i) % K
            torch.testing.assert_close(x, alone[segment.pairs[segment.which[at]][0]][int(i)])
            at += 1
    assert at == len(segment)


def test_clean_is_the_data_as_they_are(data: Any) -> None:
    source = data.parts["test"][0]
    for batch in streams().batches(data, SPEC, CLEAN):
        raw = to_float(torch.from_numpy(source.x[batch["index"].numpy()]))
        torch.testing.assert_close(batch["x"] * 0.25 + 0.5, raw)


@pytest.mark.parametrize("order", ["iid", "correlated", "gradual", "mixed", "label_shift"])
def test_neither_the_batch_size_nor_the_reader_changes_a_stream(data: Any, order: Any) -> None:
    def everything(size: int) -> tuple[torch.Tensor, list[int]]:
        found = arrived(data, streams(order=order, batch_size=size, seed=5))
        assert {len(b["x"]) for segment in found for b in segment[:-1]} == {size}
        batches = [b for segment in found for b in segment]
        return torch.cat([b["x"] for b in batches]), torch.cat([b["index"] for b in batches]).tolist()

    (x, index), (again, same), (single, one_by_one) = everything(16), everything(16), everything(1)
    assert torch.equal(x, again)
    assert index == same == one_by_one
    torch.testing.assert_close(x, single)
    other = torch.cat([b["index"] for segment in arrived(data, streams(order=order, seed=6)) for b in segment]).tolist()
    assert other != index


def test_rounds_repeat_the_shifts_with_fresh_draws(data: Any) -> None:
    stream = streams(shifts=["gaussian_noise", CLEAN], repeats=3)
    segments = stream.segments(data, SPEC)
    assert [(s.name, s.round) for s in segments] == [(n, r) for r in range(3) for n in ("gaussian_noise", CLEAN)]
    first, second = (next(stream.read(data, SPEC, segments[i])) for i in (0, 2))
    assert torch.equal(first["index"], second["index"])
    assert not torch.allclose(first["x"], second["x"])
    assert torch.equal(next(stream.read(data, SPEC, segments[1]))["x"], next(stream.read(data, SPEC, segments[3]))["x"])


def test_padded_rows_are_as_long_as_their_batch_needs() -> None:
    spec, rng = tiny_spec("speech"), np.random.default_rng(0)
    source = ArraySource(rng.integers(-999, 999, (40, 1600)).astype(np.int16), np.arange(40) % K, rng.integers(800, 1600, 40))
    data = SimpleNamespace(parts={"test": (source, np.arange(40))})
    for size in (1, 7):
        stream = ShiftStreams(shifts=["gain"], batch_size=size)
        (segment,) = stream.segments(data, spec)
        for batch in stream.read(data, spec, segment):
            assert batch["x"].shape == (len(batch["index"]), batch["length"].max())
            assert batch["length"].tolist() == source.lengths[batch["index"].numpy()].tolist()


@pytest.mark.parametrize(("given", "said"), [
    ({"order": "shuffled"}, "order='shuffled' is not one of iid"), ({"delta": 0.0}, r"delta=0\.0 must be above 0"),
    ({"imbalance": 0.5}, r"imbalance=0\.5 at least 1"), ({"severity": 6}, "severity=6 from 1 to 5"),
    ({"reset": 0}, "reset=0 is not one of"), ({"reset": True}, "reset=True is not one of"), ({"reset": "daily"}, "reset='daily'"),
    ({"repeats": 0}, "repeats=0"), ({"batch_size": 0}, "batch_size=0"), ({"limit": 0}, "limit=0")])
def test_bad_values_are_named(given: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        ShiftStreams(**given)


def test_unknown_shifts_parts_and_missing_labels_are_named(data: Any) -> None:
    with pytest.raises(ValueError, match="no shift 'fogg' of images; there are clean, gaussian_noise"):
        streams(shifts=["fogg"]).segments(data, SPEC)
    with pytest.raises(ValueError, match="part='tset': these data have train, test"):
        streams(part="tset").segments(data, SPEC)
    bare = SimpleNamespace(parts={"test": (ArraySource(data.parts["test"][0].x), np.arange(N))})
    with pytest.raises(ValueError, match="order=correlated needs class labels"):
        streams(order="correlated").segments(bare, SPEC)


def test_all_is_the_benchmark_without_its_spares() -> None:
    names = ShiftStreams().names(SPEC)
    assert len(names) == 15
    assert Corruption("speckle_noise").name not in names
