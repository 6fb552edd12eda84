"""Co-training: two classifiers on two sets of features, each of which labels for the other what it is surest of.

Idea: where each half of the features suffices by itself and the halves err independently, a sure label of one half is a random,
mostly right example for the other.

Paper: Blum and Mitchell, "Combining Labeled and Unlabeled Data with Co-Training", COLT 1998. Prediction multiplies the two
probabilities.

Deviations: each classifier learns from the other's labels alone, and not from both; the whole pool is looked at and not a random
part of it; the same number is taken of each class. Without ``views`` the features are dealt out at random, which the theory does
not cover.

Known limits: halves of features that depend on each other (neighbouring pixels) give less than the theory promises.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin, MetaEstimatorMixin
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data

from ssl_suite.estimators.labels import aligned, base, partly_labelled, seeded


class CoTraining(ClassifierMixin, MetaEstimatorMixin, BaseEstimator):
    """Co-training of two copies of a classifier; unlabelled samples have the label -1.

    Args:
        estimator: classifier with ``predict_proba``; logistic regression by default.
        views: two lists of columns; random halves by default.
        per_class: labels that each gives the other per round and class (usual: 1 to 5).
        max_iter: rounds at most.
        random_state: seed of the halves and of the classifiers.

    Attributes:
        estimators_: the two classifiers.
        views_: their columns.
        classes_: the classes met.
        n_iter_: rounds that added something.
    """

    def __init__(self, estimator: BaseEstimator | None = None, views: Sequence[Sequence[int]] | None = None, per_class: int = 5,
                 max_iter: int = 30, random_state: int | np.random.RandomState | None = None) -> None:
        self.estimator, self.views, self.per_class = estimator, views, per_class
        self.max_iter, self.random_state = max_iter, random_state

    def fit(self, X: Any, y: Any) -> Self:
        """Fit to samples (N, D) and labels (N,), -1 for none.

        Raises:
            ValueError: no label at all or of one class alone, fewer than two features, or views that are not two.
        """
        X, y, given = partly_labelled(self, X, y)
        if X.shape[1] < 2:
            raise ValueError(f"co-training splits the features and needs two or more; there is {X.shape[1]} feature(s)")
        if self.views is not None and len(self.views) != 2:
            raise ValueError(f"views must be two lists of columns, got {len(self.views)}")
        random = check_random_state(self.random_state)
        self.views_ = [np.asarray(v) for v in self.views or np.array_split(random.permutation(X.shape[1]), 2)]
        self.estimators_ = [seeded(base(self.estimator), random) for _ in range(2)]
        self.classes_, self.n_iter_ = np.unique(y[given]), 0
        labels, used = [y.copy(), y.copy()], [given.copy(), given.copy()]
        self._learn(X, labels, used)
        for turn in range(1, self.max_iter + 1):
            added = [self._teach(X, one, labels[1 - one], used[1 - one]) for one in range(2)]
            if not any(added):
                break
            self.n_iter_ = turn
            self._learn(X, labels, used)
        return self

    def _learn(self, X: np.ndarray, labels: list[np.ndarray], used: list[np.ndarray]) -> None:
        """Fit both to what they have."""
        for model, view, y, rows in zip(self.estimators_, self.views_, labels, used, strict=True):
            model.fit(X[np.ix_(rows, view)], y[rows])

    def _teach(self, X: np.ndarray, one: int, labels: np.ndarray, used: np.ndarray) -> bool:
        """Give the other's labels and rows the surest labels of one; whether there were any."""
        pool = np.flatnonzero(~used)
        if not len(pool):
            return False
        model = self.estimators_[one]
        probs = model.predict_proba(X[np.ix_(pool, self.views_[one])])
        guess, confidence = probs.argmax(1), probs.max(1)
        for c in np.unique(guess):
            members = np.flatnonzero(guess == c)
            best = pool[members[np.argsort(-confidence[members], kind="stable")][: self.per_class]]
            labels[best], used[best] = model.classes_[c], True
        return True

    def predict_proba(self, X: Any) -> np.ndarray:
        """Probabilities of the classes, (M, K): the product of both, scaled to sum to 1."""
        check_is_fitted(self)
        X = validate_data(self, X, reset=False)
        logs = sum(np.log(aligned(m, m.predict_proba(X[:, v]), self.classes_).clip(1e-12))
                   for m, v in zip(self.estimators_, self.views_, strict=True))
        probs = np.exp(logs - logs.max(1, keepdims=True))
        return probs / probs.sum(1, keepdims=True)

    def predict(self, X: Any) -> np.ndarray:
        """Classes, (M,)."""
        probs = self.predict_proba(X)
        return self.classes_[probs.argmax(1)]
