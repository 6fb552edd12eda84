"""Self-training of any classifier: it labels the unlabelled samples, a rule says which labels to believe, it learns again.

Idea: one loop; what differs between methods is the rule, and whether believed labels may be taken back.

Paper: Amini et al., "Self-Training: A Survey", arXiv 2202.12040, whose rules are functions of
`ssl_suite.functional.selection`: ``fixed``, ``above_mean``, ``margin``, ``top``, ``curriculum``, ``transductive``, ``random``.

Deviations: rounds are capped by ``max_iter`` for every rule. With ``fixed``, ``restart=False`` and ``balance=False`` the result
is that of scikit-learn's SelfTrainingClassifier. ``transductive`` takes the classifier's own votes for its posterior.

Known limits: a class without a label can never be predicted. Forest votes are badly calibrated with few labels: a fixed
threshold then admits few samples of few classes and ends below plain supervision.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable
from typing import Any, Self

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin, MetaEstimatorMixin
from sklearn.utils.metaestimators import available_if
from sklearn.utils.validation import check_is_fitted, has_fit_parameter, validate_data

from ssl_suite.estimators.labels import base, partly_labelled
from ssl_suite.functional.selection import fixed


class SelfTraining(ClassifierMixin, MetaEstimatorMixin, BaseEstimator):
    """Self-training with a rule of choice; unlabelled samples have the label -1.

    Args:
        estimator: classifier with ``predict_proba``; logistic regression by default.
        policy: maps probabilities (N, K) to the samples to believe, (N,) bool; a parameter named ``turn`` gets the number
            of the round, from 1. Options by ``functools.partial``.
        restart: label all unlabelled samples anew each round, so that a label can be taken back.
        balance: given labels together weigh as much as pseudo-labels together; else each sample weighs the same.
        max_iter: rounds at most.

    Attributes:
        estimator_: the last classifier.
        classes_: the classes met.
        transduction_: labels the last classifier was fitted to, -1 where none was believed, (N,).
        n_iter_: rounds that believed something.
    """

    def __init__(self, estimator: BaseEstimator | None = None, policy: Callable[..., np.ndarray] = fixed, restart: bool = False,
                 balance: bool = False, max_iter: int = 10) -> None:
        self.estimator, self.policy, self.restart = estimator, policy, restart
        self.balance, self.max_iter = balance, max_iter

    def fit(self, X: Any, y: Any) -> Self:
        """Fit to samples (N, D) and labels (N,), -1 for none.

        Raises:
            ValueError: no label at all or of one class alone, or ``balance`` with a classifier that takes no sample weights.
        """
        X, y, given = partly_labelled(self, X, y)
        self.estimator_ = base(self.estimator)
        if self.balance and not has_fit_parameter(self.estimator_, "sample_weight"):
            raise ValueError(f"balance=True needs sample weights and {type(self.estimator_).__name__} takes none; "
                             "set balance=False")
        takes_turn = "turn" in inspect.signature(self.policy).parameters
        self.n_iter_, self.transduction_, used = 0, y.copy(), given.copy()
        self._learn(X, given, used)
        for turn in range(1, self.max_iter + 1):
            pool = np.flatnonzero(~given if self.restart else ~used)
            if not len(pool):
                break
            probs = self.estimator_.predict_proba(X[pool])
            kept = self.policy(probs, turn=turn) if takes_turn else self.policy(probs)
            if not kept.any():
                break
            if self.restart:
                self.transduction_[~given], used = -1, given.copy()
            self.transduction_[pool[kept]] = self.estimator_.classes_[probs[kept].argmax(1)]
            used[pool[kept]] = True
            self.n_iter_ = turn
            self._learn(X, given, used)
        if not self.n_iter_ and not given.all() and self.max_iter:
            warnings.warn("the policy kept no pseudo-label, so this is the classifier of the given labels; lower its threshold",
                          stacklevel=2)
        self.classes_ = self.estimator_.classes_
        return self

    def _learn(self, X: np.ndarray, given: np.ndarray, used: np.ndarray) -> None:
        """Fit the classifier to given and believed labels."""
        weights = {}
        if self.balance and (used & ~given).any():
            own = given[used]
            weights["sample_weight"] = np.where(own, len(own) / (2 * own.sum()), len(own) / (2 * (~own).sum()))
        self.estimator_.fit(X[used], self.transduction_[used], **weights)

    def predict(self, X: Any) -> np.ndarray:
        """Classes, (M,)."""
        check_is_fitted(self)
        return self.estimator_.predict(validate_data(self, X, reset=False))

    @available_if(lambda self: hasattr(base(self.estimator), "predict_proba"))
    def predict_proba(self, X: Any) -> np.ndarray:
        """Probabilities of the classes, (M, K)."""
        check_is_fitted(self)
        return self.estimator_.predict_proba(validate_data(self, X, reset=False))
