"""How the archives of time series are judged: a support vector machine on frozen features, and the baseline without any."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import GridSearchCV
from sklearn.svm import SVC

PENALTIES = (*(10.0 ** k for k in range(-4, 5)), float("inf"))


def svm_probe(train: np.ndarray, y: np.ndarray, test: np.ndarray, test_y: np.ndarray) -> float:
    """Accuracy of an RBF support vector machine by the protocol of TS2Vec (arXiv 2106.10466) after Franceschi et al. (2019).

    The penalty C comes from 10^-4 ... 10^4 and infinity by five-fold cross-validation, gamma is 1 / (D var); with fewer than 50
    samples, or fewer than 5 a class on average, C is infinite.

    Args:
        train: features (N, D) with classes y (N,).
        y: classes.
        test: features (M, D) with classes test_y (M,).
        test_y: classes.

    Returns:
        Share of right answers, in [0, 1].
    """
    svm = SVC(C=float("inf"), gamma="scale", max_iter=1_000_000)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        warnings.filterwarnings("ignore", message="The least populated class", category=UserWarning)
        if len(y) < 50 or len(y) // len(np.unique(y)) < 5:
            return float(svm.fit(train, y).score(test, test_y))
        return float(GridSearchCV(svm, {"C": PENALTIES}, cv=5).fit(train, y).score(test, test_y))


def dtw_distances(query: np.ndarray, others: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Squared distance by dynamic time warping, all channels together, of one series to many at once.

    Args:
        query: (C, T).
        others: (N, C, T'), anything behind the valid steps.
        lengths: valid steps of each, (N,).

    Returns:
        (N,).
    """
    # Anti-diagonals: cell (i, j) of the table lies on i + j, and depends on the two diagonals before its own.
    cost = np.square(query[None, :, :, None] - others[:, :, None, :]).sum(axis=1)
    n, steps, size = cost.shape
    before, last = np.full((n, steps), np.inf), np.full((n, steps), np.inf)
    out = np.empty(n)
    for diagonal in range(steps + size - 1):
        i = np.arange(max(0, diagonal - size + 1), min(steps, diagonal + 1))
        now = np.full((n, steps), np.inf)
        aslant, along = (np.where(i > 0, cells[:, i - 1], np.inf) for cells in (before, last))
        best = np.minimum(np.minimum(last[:, i], along), aslant)
        now[:, i] = cost[:, i, diagonal - i] + (0.0 if diagonal == 0 else best)
        ends = lengths == diagonal - steps + 2
        out[ends] = now[ends, steps - 1]
        before, last = last, now
    return out


def dtw_accuracy(train: Sequence[np.ndarray], y: np.ndarray, test: Sequence[np.ndarray], test_y: np.ndarray) -> float:
    """Accuracy of the nearest training series by dynamic time warping without a window, the channels warped together.

    Args:
        train: series (C, T), of any lengths.
        y: their classes (N,).
        test: series to classify.
        test_y: their classes.

    Returns:
        Share of right answers, in [0, 1].
    """
    lengths = np.array([s.shape[1] for s in train])
    padded = np.zeros((len(train), train[0].shape[0], lengths.max()))
    for row, series in zip(padded, train, strict=True):
        row[:, : series.shape[1]] = series
    nearest = np.array([dtw_distances(series, padded, lengths).argmin() for series in test])
    return float((y[nearest] == test_y).mean())
