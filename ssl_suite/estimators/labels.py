"""Labels of which some are missing, as scikit-learn writes them: -1 stands for none."""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, clone
from sklearn.linear_model import LogisticRegression
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import validate_data


def partly_labelled(estimator: BaseEstimator, X: Any, y: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Features (N, D), labels (N,) and which of them are given, (N,) bool, checked.

    Raises:
        ValueError: the arrays do not fit together, y holds no classes, every label is missing, or all given ones are of one class.
    """
    X, y = validate_data(estimator, X, y)
    given = np.ones(len(y), bool) if y.dtype.kind in "US" else np.asarray(y != -1, bool)
    if not given.any():
        raise ValueError(f"all {len(y)} labels are -1, which stands for unlabelled; at least one sample of each class "
                         "needs a label")
    check_classification_targets(y[given])
    if len(classes := np.unique(y[given])) < 2:
        raise ValueError(f"all {given.sum()} given labels are of class {classes[0]}, which leaves nothing to tell apart; label "
                         "at least one sample of another class")
    return X, y, given


def base(estimator: BaseEstimator | None) -> Any:
    """A fresh copy of the classifier given; logistic regression by default."""
    return LogisticRegression(max_iter=1000) if estimator is None else clone(estimator)


def seeded(model: Any, random: np.random.RandomState) -> Any:
    """The model with a seed drawn where it takes one."""
    return model.set_params(random_state=random.randint(2**31 - 1)) if "random_state" in model.get_params() else model


def aligned(model: Any, probs: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """Probabilities (N, K) over all classes from those of a model that has met some of them."""
    out = np.zeros((len(probs), len(classes)))
    out[:, np.searchsorted(classes, model.classes_)] = probs
    return out
