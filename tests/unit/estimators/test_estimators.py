"""Self-training, co-training and tri-training as scikit-learn has them."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression, Perceptron
from sklearn.naive_bayes import GaussianNB
from sklearn.neighbors import KNeighborsClassifier
from sklearn.semi_supervised import SelfTrainingClassifier
from sklearn.utils.estimator_checks import parametrize_with_checks

from ssl_suite.data.splits import class_balanced
from ssl_suite.estimators.co_training import CoTraining
from ssl_suite.estimators.self_training import SelfTraining
from ssl_suite.estimators.tri_training import TriTraining, admitted, joint_error
from ssl_suite.functional import selection

ALL = [SelfTraining(), CoTraining(random_state=0), TriTraining(random_state=0)]
NOT_OURS = {"check_classifiers_classes": "it takes -1 for a class, which stands for unlabelled here",
            "check_non_transformer_estimators_n_iter": "n_iter_ is 0 where every sample has a label"}


@parametrize_with_checks(ALL, expected_failed_checks=lambda _: NOT_OURS)
def test_scikit_learns_checks(estimator: Any, check: Any) -> None:
    check(estimator)


def few(per_class: int = 4, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Half of the digits with few labels: samples, labels with -1, true labels."""
    X, truth = load_digits(return_X_y=True)
    X, truth = X[::2] / 16, truth[::2]
    y = np.full(len(truth), -1)
    rows = class_balanced(truth, per_class, seed)
    y[rows] = truth[rows]
    return X, y, truth


@pytest.mark.parametrize("threshold", [0.4, 0.6])
def test_a_fixed_threshold_is_scikit_learns(threshold: float) -> None:
    X, y, _ = few()
    ours = SelfTraining(LogisticRegression(), partial(selection.fixed, threshold=threshold)).fit(X, y)
    theirs = SelfTrainingClassifier(LogisticRegression(), threshold=threshold).fit(X, y)
    assert np.array_equal(ours.transduction_, theirs.transduction_)
    assert (ours.transduction_ != y).sum() > 10, "nothing was learned from"
    assert np.array_equal(ours.predict(X), theirs.predict(X))


@pytest.mark.parametrize("make", [
    lambda: SelfTraining(policy=selection.transductive, max_iter=2),
    lambda: SelfTraining(policy=selection.curriculum, restart=True, max_iter=5),
    lambda: CoTraining(per_class=20, max_iter=4, random_state=0),
    lambda: TriTraining(random_state=0)], ids=["msta", "curriculum", "co", "tri"])
def test_given_labels_stay_and_unlabelled_samples_are_used(make: Any) -> None:
    X, y, truth = few()
    model = make().fit(X, y)
    alone = LogisticRegression(max_iter=1000).fit(X[y != -1], y[y != -1])
    assert (model.predict(X) != alone.predict(X)).any()
    assert (model.predict(X) == truth).mean() > 0.7
    if hasattr(model, "transduction_"):
        assert np.array_equal(model.transduction_[y != -1], y[y != -1])


@pytest.mark.parametrize("model", ALL, ids=lambda m: type(m).__name__)
def test_all_unlabelled_is_refused(model: Any) -> None:
    with pytest.raises(ValueError, match="all 6 labels are -1"):
        model.fit(np.eye(6), np.full(6, -1))


@pytest.mark.parametrize("model", ALL, ids=lambda m: type(m).__name__)
def test_labels_of_one_class_are_refused(model: Any) -> None:
    with pytest.raises(ValueError, match=r"all 2 given labels are of class 3.*label at least one sample of another class"):
        model.fit(np.eye(6), np.array([3, 3, -1, -1, -1, -1]))


def test_a_policy_that_keeps_nothing_warns_and_leaves_the_supervised_classifier() -> None:
    X, y, _ = few()
    with pytest.warns(UserWarning, match="kept no pseudo-label"):
        model = SelfTraining(policy=partial(selection.fixed, threshold=1.0)).fit(X, y)
    alone = LogisticRegression(max_iter=1000).fit(X[y != -1], y[y != -1])
    assert np.array_equal(model.predict(X), alone.predict(X))


def test_a_label_can_be_taken_back_only_after_a_restart() -> None:
    X, y, _ = few()
    turns: list[int] = []

    def once(probs: np.ndarray, turn: int) -> np.ndarray:
        turns.append(len(probs))
        return np.arange(len(probs)) % 2 == turn % 2

    SelfTraining(policy=once, restart=True, max_iter=3).fit(X, y)
    assert turns == [(y == -1).sum()] * 3
    turns.clear()
    SelfTraining(policy=once, max_iter=3).fit(X, y)
    assert turns[0] > turns[1] > turns[2]


def test_balanced_groups_weigh_the_same() -> None:
    class Recorder(GaussianNB):
        def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Any:
            Recorder.last = sample_weight
            return super().fit(X, y, sample_weight)

    X, y, _ = few()
    SelfTraining(Recorder(var_smoothing=0.1), balance=True).fit(X, y)
    assert Recorder.last.mean() == pytest.approx(1.0)
    assert len(np.unique(Recorder.last)) == 2
    with pytest.raises(ValueError, match="takes none"):
        SelfTraining(KNeighborsClassifier(), balance=True).fit(X, y)


def test_co_training_refuses_views_that_are_not_two() -> None:
    X, y, _ = few()
    with pytest.raises(ValueError, match="two lists of columns"):
        CoTraining(views=[[0], [1], [2]]).fit(X, y)


def test_tri_training_needs_no_probabilities() -> None:
    X, y, truth = few()
    assert (TriTraining(Perceptron(), random_state=0).fit(X, y).predict(X) == truth).mean() > 0.6


def test_joint_error_counts_agreements_alone() -> None:
    assert joint_error(np.array([0, 1, 1, 2]), np.array([0, 1, 0, 2]), np.array([0, 0, 1, 2])) == pytest.approx(1 / 3)
    assert joint_error(np.array([0, 0]), np.array([1, 1]), np.array([0, 1])) == 0.5


@pytest.mark.parametrize(("rows", "error", "last_error", "last_size", "expected"), [
    (100, 0.5, 0.5, 0, 0),           # no better than before
    (100, 0.0, 0.5, 0, 100),         # faultless: all
    (100, 0.1, 0.2, 60, 100),        # 10 wrong labels now, 12 then
    (200, 0.1, 0.2, 60, 119),        # too many: ceil(0.2 * 60 / 0.1 - 1)
    (50, 0.1, 0.2, 60, 0)])          # fewer than last time
def test_how_many_labels_tri_training_admits(rows: int, error: float, last_error: float, last_size: float, expected: int) -> None:
    random = np.random.RandomState(0)
    assert len(admitted(np.arange(rows), error, last_error, last_size, random)) == expected
