"""Splits: sizes, balance, and the same answer for the same seed."""

from __future__ import annotations

import numpy as np
import pytest

from ssl_suite.data.splits import chronological, class_balanced, hold_out, labelled, symmetric_noise

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
    for count in (0, 21):
        with pytest.raises(ValueError, match=rf"data\.labels={count} must lie between 1 and the 20"):
            labelled(None, among, seed=1, count=count)


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
