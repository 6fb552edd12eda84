"""Splits: sizes, balance, and the same answer for the same seed."""

from __future__ import annotations

import numpy as np
import pytest

from ssl_suite.data.splits import (
    asymmetric_noise,
    chronological,
    class_balanced,
    hold_out,
    labelled,
    long_tailed,
    selection_bias_pca,
    symmetric_noise,
)

TARGETS = np.repeat([0, 1, 2], [30, 20, 10])


def test_hold_out_keeps_the_classes_in_proportion() -> None:
    kept, held = hold_out(TARGETS, 60, 0.2, seed=3)
    assert np.bincount(TARGETS[held]).tolist() == [6, 4, 2]
    assert sorted([*kept, *held]) == list(range(60))
    with pytest.raises(ValueError, match=r"data\.val_fraction must lie in \[0, 1\), got 1"):
        hold_out(TARGETS, 60, 1.0, seed=3)


def test_the_same_number_of_each_class() -> None:
    among = np.arange(5, 60)
    chosen = class_balanced(TARGETS, 4, 3, among)
    assert np.bincount(TARGETS[chosen]).tolist() == [4, 4, 4]
    assert set(chosen) <= set(among)
    assert chosen.tolist() == class_balanced(TARGETS, 4, 3, among).tolist()
    assert chosen.tolist() != class_balanced(TARGETS, 4, 4, among).tolist()
    with pytest.raises(ValueError, match=r"class 2 has 10 samples, fewer than data\.labels_per_class=11"):
        class_balanced(TARGETS, 11, 0)


def test_some_labels_of_all() -> None:
    among = np.arange(20, 40)
    chosen = labelled(None, among, seed=1, count=7)
    assert len(set(chosen)) == 7
    assert set(chosen) <= set(among)
    assert chosen.tolist() == labelled(None, among, seed=1, count=7).tolist()


def test_a_share_of_the_labels_is_that_number_of_them() -> None:
    among = np.arange(20, 52)
    for share, number in ((0.0625, 2), (0.25, 8), (0.001, 1), (0.999, 32)):
        assert labelled(None, among, 1, count=share).tolist() == labelled(None, among, 1, count=number).tolist()
    x = np.random.default_rng(0).normal(size=(60, 4))
    assert np.array_equal(selection_bias_pca(x, TARGETS, 1.0, 0, count=0.2), selection_bias_pca(x, TARGETS, 1.0, 0, count=12))


@pytest.mark.parametrize("wrong", [0, -3, 61, 0.0, 1.0, -0.5, 12.0, float("nan")])
def test_neither_a_number_nor_a_share_of_labels_is_told(wrong: float) -> None:
    match = rf"data\.labels={wrong} must be a whole number between 1 and the 60 samples .*share"
    with pytest.raises(ValueError, match=match):
        labelled(TARGETS, np.arange(60), 0, count=wrong)
    with pytest.raises(ValueError, match=match):
        selection_bias_pca(np.zeros((60, 4)), TARGETS, 1.0, 0, count=wrong)


def test_labels_are_chosen_in_one_way() -> None:
    among = np.arange(60)
    assert labelled(TARGETS, among, 0).tolist() == among.tolist()
    assert labelled(TARGETS, among, 3, per_class=4).tolist() == class_balanced(TARGETS, 4, 3).tolist()
    with pytest.raises(ValueError, match=r"data\.labels_per_class=4 and data\.labels=9: give one of them"):
        labelled(TARGETS, among, 0, per_class=4, count=9)
    with pytest.raises(ValueError, match=r"data\.labels_per_class=4 needs class labels.*take data\.labels"):
        labelled(None, among, 0, per_class=4)


def test_noise_changes_exactly_the_share_asked_for() -> None:
    noisy = symmetric_noise(TARGETS, 0.25, 3, seed=2)
    assert (noisy != TARGETS).sum() == 15
    assert set(noisy) == {0, 1, 2}
    with pytest.raises(ValueError, match=r"data\.label_noise must lie in \[0, 1\], got 2"):
        symmetric_noise(TARGETS, 2.0, 3, seed=2)


def test_parts_in_order_of_time() -> None:
    parts = chronological(10, 0.3, 0.3)
    assert [part.tolist() for part in parts] == [[0, 1, 2], [3, 4, 5], [6, 7, 8, 9]]
    assert [len(part) for part in chronological(6941, 0.3, 0.3)] == [2082, 2082, 2777]
    with pytest.raises(ValueError, match="sum to less than 1"):
        chronological(10, 0.5, 0.5)


def test_classes_thin_out_by_a_geometric_law() -> None:
    targets = np.repeat([0, 1, 2], 100)
    chosen = long_tailed(targets, 0.01, seed=1)
    assert np.bincount(targets[chosen]).tolist() == [100, 10, 1]
    assert chosen.tolist() == long_tailed(targets, 0.01, seed=1).tolist()
    assert chosen.tolist() != long_tailed(targets, 0.01, seed=2).tolist()
    assert np.bincount(TARGETS[long_tailed(TARGETS, 1.0, seed=1)]).tolist() == [30, 20, 10]  # no more than there are
    assert set(long_tailed(targets, 0.5, 1, among=np.arange(50, 300))) <= set(range(50, 300))
    with pytest.raises(ValueError, match=r"data\.long_tail must lie in \(0, 1\], got 0"):
        long_tailed(targets, 0.0, seed=1)


def test_classes_are_mistaken_for_the_ones_named() -> None:
    noisy = asymmetric_noise(TARGETS, 0.5, {0: 1, 2: 0}, seed=4)
    assert np.bincount(noisy[TARGETS == 0], minlength=3).tolist() == [15, 15, 0]
    assert (noisy[TARGETS == 1] == 1).all()
    assert np.bincount(noisy[TARGETS == 2], minlength=3).tolist() == [5, 0, 5]
    for rate, pairs, match in ((1.5, {0: 1}, "label_noise"), (0.5, {0: 3}, "names class 3; classes go from 0 to 2")):
        with pytest.raises(ValueError, match=match):
            asymmetric_noise(TARGETS, rate, pairs, seed=4)


def test_biased_labels_keep_the_classes_and_lie_far_from_the_middle() -> None:
    rng = np.random.default_rng(0)
    targets = np.repeat([0, 1], [600, 300])
    axis = rng.normal(0.0, 3.0, 900)  # the first principal component of both classes
    x = np.stack([axis, rng.normal(size=900), rng.normal(size=900)], 1) @ np.linalg.qr(rng.normal(size=(3, 3)))[0]
    biased, fair = (selection_bias_pca(x, targets, r, seed=5, count=90) for r in (3.0, 0.0))
    for chosen in (biased, fair):
        assert np.bincount(targets[chosen]).tolist() == [60, 30]
        assert len(set(chosen)) == 90
    assert np.abs(axis[biased]).mean() > 1.5 * np.abs(axis[fair]).mean()
    assert np.abs(axis[fair]).mean() == pytest.approx(np.abs(axis).mean(), rel=0.2)
    assert biased.tolist() == selection_bias_pca(x, targets, 3.0, seed=5, count=90).tolist()
    extreme = selection_bias_pca(x, targets, 1e6, seed=5, per_class=3)  # exp would overflow
    assert np.bincount(targets[extreme]).tolist() == [3, 3]
    for numbers in ({}, {"per_class": 3, "count": 9}):
        with pytest.raises(ValueError, match=r"give data\.labels_per_class or data\.labels"):
            selection_bias_pca(x, targets, 1.0, seed=5, **numbers)
    with pytest.raises(ValueError, match="class 1 has 300 samples, fewer than the 301"):
        selection_bias_pca(x, targets, 1.0, seed=5, per_class=301)


def test_drawing_by_noise_has_the_probabilities_of_the_formula() -> None:
    x, targets = np.array([[-2.0], [0.0], [0.5], [1.5]]), np.zeros(4, dtype=int)
    z = np.abs(x[:, 0] - x.mean()) / x.std()
    expected = np.exp(z) / np.exp(z).sum()
    drawn = np.concatenate([selection_bias_pca(x, targets, 1.0, seed, per_class=1) for seed in range(600)])
    np.testing.assert_allclose(np.bincount(drawn, minlength=4) / 600, expected, atol=0.06)
