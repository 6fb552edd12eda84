"""Repeated ridge self-distillation: k students, each taught by the one before, found without fitting any of them.

Idea: a student of ridge regression that learns from xi * teacher + (1 - xi) * target multiplies each principal direction
by a factor of its own. k of them make a polynomial of degree k in that factor, whose coefficients are k free numbers:
least squares on validation data finds all of them at once.

Paper: Pareek, Du and Oh, "Understanding the Gains from Repeated Self-Distillation", NeurIPS 2024, arXiv 2407.04600. With
A = (X^T X + lambda I)^-1 X^T X the k-th student is theta_0 + sum_i xi_bar_i (A^i - I) theta_0.

Deviations: the paper finds the parabola in xi_bar by evaluating a few students; ordinary least squares on the same
validation error has the same minimum. Powers of A are taken in the eigenbasis of X^T X, so that no student is fitted and
lambda near 0 costs no digits, and least squares is of the steps from one student to the next, so that a large lambda costs none.

Known limits: the k numbers are fitted to the validation part, so a gain may be no more than an adaptation to it: on the
paper's data it is there when parts follow each other in time, and gone when they are shuffled (``docs/results.md``). As
lambda falls to 0, A nears I and the xi explode, though the student stays put.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

import numpy as np
from sklearn.base import BaseEstimator, RegressorMixin
from sklearn.utils.validation import check_array, check_consistent_length, check_is_fitted

DECADES = tuple(float(10.0**power) for power in range(-4, 6))


class RepeatedRidgeSelfDistillation(RegressorMixin, BaseEstimator):
    """Ridge regression distilled k times, penalty and weights of the teachers chosen on validation data.

    Args:
        k: students after the first model; 0 is ridge regression itself.
        lambdas: penalties to choose from, all above 0; the same for every student.
        fit_intercept: centre features and targets by their means over the training part.

    Attributes:
        lambda_: chosen penalty.
        xi_bar_: coefficients of the closed form, (k,).
        xi_: weight of the teacher of the first to the last student, (k,).
        coef_: weights of the last student, (D,) or (R, D).
        intercept_: its intercept, scalar or (R,).
        validation_errors_: mean squared validation error of the best weights at each penalty, (len(lambdas),).
    """

    def __init__(self, k: int = 2, lambdas: Sequence[float] = DECADES, fit_intercept: bool = True) -> None:
        self.k, self.lambdas, self.fit_intercept = k, lambdas, fit_intercept

    def fit(self, X: Any, y: Any, X_val: Any, y_val: Any) -> Self:
        """Fit the first model on the training part, the weights of the k students on the validation part.

        Args:
            X: training features, (N, D).
            y: training targets, (N,) or (N, R).
            X_val: validation features, (M, D).
            y_val: validation targets, (M,) or (M, R).

        Raises:
            ValueError: ``k`` is negative, a penalty is not above 0, or the arrays do not fit together.
        """
        if self.k < 0 or not len(self.lambdas) or min(self.lambdas) <= 0.0:
            raise ValueError(f"k={self.k} must be at least 0 and every one of lambdas={self.lambdas} above 0")
        X, X_val = check_array(X, dtype=np.float64), check_array(X_val, dtype=np.float64)
        y, y_val = (check_array(t, dtype=np.float64, ensure_2d=False) for t in (y, y_val))
        check_consistent_length(X, y)
        check_consistent_length(X_val, y_val)
        if X.shape[1] != X_val.shape[1] or y.shape[1:] != y_val.shape[1:]:
            raise ValueError(f"training part {X.shape}, {y.shape} and validation part {X_val.shape}, {y_val.shape} must agree "
                             "in features and targets")
        center, offset = (X.mean(0), y.mean(0)) if self.fit_intercept else (np.zeros(X.shape[1]), np.zeros(y.shape[1:]))
        eigenvalues, basis = np.linalg.eigh((X - center).T @ (X - center))
        eigenvalues = eigenvalues.clip(0.0)
        moments = basis.T @ ((X - center).T @ (y - offset))
        design, errors, found = (X_val - center) @ basis, [], []
        for decay in self.lambdas:
            steps = students(eigenvalues, moments, decay, self.k)
            predicted = np.einsum("md,kd...->km...", design, steps)
            taken = least_squares(predicted[1:], y_val - offset - predicted[0])
            student = steps[0] + np.tensordot(taken, steps[1:], 1)
            errors.append(float(np.mean((y_val - offset - design @ student) ** 2)))
            found.append((decay, -np.diff(taken, append=0.0), basis @ student))
        self.lambda_, self.xi_bar_, weights = found[int(np.argmin(errors))]
        self.validation_errors_, self.xi_ = np.array(errors), teacher_weights(self.xi_bar_)
        self.coef_, self.intercept_, self.n_features_in_ = weights.T, offset - center @ weights, X.shape[1]
        return self

    def predict(self, X: Any) -> np.ndarray:
        """Predictions of the last student, (M,) or (M, R)."""
        check_is_fitted(self)
        return check_array(X, dtype=np.float64) @ self.coef_.T + self.intercept_


def students(eigenvalues: np.ndarray, moments: np.ndarray, decay: float, k: int) -> np.ndarray:
    """The first model theta_0 and the k steps (A^i - A^(i-1)) theta_0 from one student to the next, in the eigenbasis.

    Sums of the first steps are the paper's (A^i - I) theta_0. With a large penalty those differ by less than rounding, the
    steps do not.

    Args:
        eigenvalues: of X^T X, (D,), none below 0.
        moments: X^T y in the eigenbasis, (D,) or (D, R).
        decay: penalty, above 0.
        k: number of steps.

    Returns:
        (k + 1, D) or (k + 1, D, R).
    """
    kept, lost = eigenvalues / (eigenvalues + decay), decay / (eigenvalues + decay)  # the eigenvalues of A and of I - A
    factors = np.stack([np.ones_like(kept), *(-lost * kept**i for i in range(k))])
    first = (moments.T / (eigenvalues + decay)).T
    return factors.reshape(*factors.shape, *(1,) * (moments.ndim - 1)) * first


def least_squares(columns: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Coefficients (k,) of the columns (k, M) or (k, M, R) nearest to a target; the shortest where there are several.

    Directions of less than 1e-12 of the largest are left out: with a small penalty all columns are nearly one, and what rounding
    leaves of their differences made the fit of more students worse.
    """
    flat = columns.reshape(len(columns), target.size)
    scale = np.linalg.norm(flat, axis=1)
    scale[scale == 0.0] = 1.0
    return np.linalg.lstsq((flat / scale[:, None]).T, target.ravel(), rcond=1e-12)[0] / scale


def teacher_weights(xi_bar: np.ndarray) -> np.ndarray:
    """The weight of each teacher, first student first, from the coefficients of the closed form.

    The last student's coefficients are c_0 = 1 - xi_k, c_1 = xi_k (1 - xi_{k-1}), ... Once a weight is 0 its teacher and
    all before it do not matter, and 0 is given for them.

    Args:
        xi_bar: coefficients c_1 to c_k, (k,).
    """
    share, weights = 1.0, []
    for c in [1.0 - xi_bar.sum(), *xi_bar[:-1]]:
        weights.append(1.0 - c / share if share else 0.0)
        share *= weights[-1]
    return np.array(weights[: len(xi_bar)][::-1])
