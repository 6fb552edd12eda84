"""Support vector machine and dynamic time warping."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.datasets import make_circles

from ssl_suite.functional.archive import dtw_accuracy, dtw_distances, svm_probe


def table(a: np.ndarray, b: np.ndarray) -> float:
    """The textbook recursion, cell by cell."""
    d = np.full((a.shape[1] + 1, b.shape[1] + 1), np.inf)
    d[0, 0] = 0.0
    for i in range(a.shape[1]):
        for j in range(b.shape[1]):
            d[i + 1, j + 1] = ((a[:, i] - b[:, j]) ** 2).sum() + min(d[i, j], d[i, j + 1], d[i + 1, j])
    return float(d[-1, -1])


@pytest.mark.parametrize("steps", [1, 6, 13])
def test_dtw_is_the_textbook_recursion_whatever_the_lengths(steps: int) -> None:
    rng = np.random.default_rng(steps)
    query, others, lengths = rng.normal(size=(2, steps)), rng.normal(size=(5, 2, 9)), np.array([9, 1, 4, 9, 7])
    expected = [table(query, row[:, :n]) for row, n in zip(others, lengths, strict=True)]
    np.testing.assert_allclose(dtw_distances(query, others, lengths), expected)


def test_dtw_sees_through_a_delay_where_the_plain_distance_does_not() -> None:
    t = np.arange(40)
    bump, step = (lambda at: np.exp(-((t - at) / 2.0) ** 2)[None]), (lambda at: (t > at).astype(float)[None] * 0.3)
    train, test = [bump(10), step(10)], [bump(25), bump(30), step(25), step(30)]
    assert dtw_accuracy(train, np.array([0, 1]), test, np.array([0, 0, 1, 1])) == 1.0
    plain = [np.argmin([((s - r) ** 2).sum() for r in train]) for s in test[:2]]
    assert plain == [1, 1]


@pytest.mark.parametrize("samples", [30, 200])
def test_the_svm_separates_what_a_line_cannot(samples: int) -> None:
    x, y = make_circles(samples + 200, noise=0.05, factor=0.4, random_state=0)
    assert svm_probe(x[:samples], y[:samples], x[samples:], y[samples:]) > 0.95
    shuffled = np.random.default_rng(0).permutation(y[:samples])
    assert svm_probe(x[:samples], shuffled, x[samples:], y[samples:]) < 0.8
