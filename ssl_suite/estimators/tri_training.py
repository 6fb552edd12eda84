"""Tri-training: three classifiers on three bootstraps; what two agree on is a label for the third.

Idea: agreement of two takes the place of confidence, so that any classifier will do. A bound on the noise of the labels says when
a classifier may learn from them, and from how many at most.

Paper: Zhou and Li, "Tri-Training: Exploiting Unlabeled Data Using Three Classifiers", IEEE TKDE 2005, algorithm in table 1.

Deviations: bootstraps are drawn within each class, so that none loses a class of few labels. Where all three disagree the first
one decides. Rounds are capped by ``max_iter``.

Known limits: the error of two agreeing classifiers is measured on the samples they were fitted to: a classifier that fits them
perfectly looks faultless, and then learns from the unlabelled samples once only.
"""

from __future__ import annotations

from math import ceil, floor
from typing import Any, Self

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin, MetaEstimatorMixin
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data

from ssl_suite.estimators.labels import base, partly_labelled, seeded


class TriTraining(ClassifierMixin, MetaEstimatorMixin, BaseEstimator):
    """Tri-training of three copies of a classifier; unlabelled samples have the label -1.

    Args:
        estimator: classifier; logistic regression by default.
        max_iter: rounds at most.
        random_state: seed of the bootstraps, of what is drawn from too many labels, and of the classifiers.

    Attributes:
        estimators_: the three classifiers.
        classes_: the classes met.
        n_iter_: rounds in which one of them learned.
    """

    def __init__(self, estimator: BaseEstimator | None = None, max_iter: int = 10,
                 random_state: int | np.random.RandomState | None = None) -> None:
        self.estimator, self.max_iter, self.random_state = estimator, max_iter, random_state

    def fit(self, X: Any, y: Any) -> Self:
        """Fit to samples (N, D) and labels (N,), -1 for none.

        Raises:
            ValueError: no label at all or of one class alone.
        """
        X, y, given = partly_labelled(self, X, y)
        random = check_random_state(self.random_state)
        known, labels, pool = X[given], y[given], X[~given]
        self.classes_, self.n_iter_ = np.unique(labels), 0
        self.estimators_ = []
        for _ in range(3):
            rows = np.concatenate([random.choice(m, len(m)) for m in (np.flatnonzero(labels == c) for c in self.classes_)])
            self.estimators_.append(seeded(base(self.estimator), random).fit(known[rows], labels[rows]))
        errors, sizes = [0.5] * 3, [0.0] * 3
        for turn in range(1, self.max_iter + 1):
            if not len(pool):
                break
            guesses = [model.predict(pool) for model in self.estimators_]
            fitted = [model.predict(known) for model in self.estimators_]
            lessons: dict[int, tuple[np.ndarray, np.ndarray]] = {}
            for i in range(3):
                j, k = (i + 1) % 3, (i + 2) % 3
                error = joint_error(fitted[j], fitted[k], labels)
                rows = admitted(np.flatnonzero(guesses[j] == guesses[k]), error, errors[i], sizes[i], random)
                if len(rows):
                    lessons[i], errors[i], sizes[i] = (rows, guesses[j][rows]), error, float(len(rows))
            if not lessons:
                break
            for i, (rows, taught) in lessons.items():
                self.estimators_[i].fit(np.concatenate([known, pool[rows]]), np.concatenate([labels, taught]))
            self.n_iter_ = turn
        return self

    def predict(self, X: Any) -> np.ndarray:
        """Classes by majority, (M,)."""
        check_is_fitted(self)
        X = validate_data(self, X, reset=False)
        first, second, third = (model.predict(X) for model in self.estimators_)
        return np.where(second == third, second, first)


def joint_error(first: np.ndarray, second: np.ndarray, truth: np.ndarray) -> float:
    """Share of wrong labels among those two classifiers agree on; 0.5 where they never do."""
    agree = first == second
    return float((first[agree] != truth[agree]).mean()) if agree.any() else 0.5


def admitted(rows: np.ndarray, error: float, last_error: float, last_size: float, random: np.random.RandomState) -> np.ndarray:
    """The agreed samples a classifier may learn from: all, a random part, or none (Zhou and Li, equations 9 and 10).

    Args:
        rows: samples the other two agree on.
        error: their joint error now.
        last_error: their joint error when the classifier last learned.
        last_size: number of samples it learned from then; 0 at first.
        random: draws the part.
    """
    none = rows[:0]
    if error >= last_error:
        return none
    least = last_size or floor(error / (last_error - error) + 1)
    if least >= len(rows):
        return none
    if error * len(rows) < last_error * least:
        return rows
    if least > error / (last_error - error):
        return np.sort(random.choice(rows, ceil(last_error * least / error - 1), replace=False))
    return none
