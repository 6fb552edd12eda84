"""Repeated ridge self-distillation against k fits, against theory, and on the paper's tables."""

from __future__ import annotations

import runpy
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.datasets import load_diabetes
from sklearn.linear_model import Ridge

from ssl_suite.estimators.repeated_self_distillation import RepeatedRidgeSelfDistillation, teacher_weights

PUBLISHED = {  # test error: ridge, one student, two students
    "air_quality": (2.009, 1.993, 1.062), "airfoil": (1.336, 1.220, 1.189), "appliances": (0.604, 0.601, 0.599)}


def halves() -> tuple[np.ndarray, ...]:
    x, y = load_diabetes(return_X_y=True, scaled=False)
    return x[:250] / x.std(0), y[:250], x[250:] / x.std(0), y[250:]


@pytest.mark.parametrize("k", [0, 1, 2, 4])
@pytest.mark.parametrize("fit_intercept", [True, False])
def test_the_closed_form_equals_k_fits(k: int, fit_intercept: bool) -> None:
    x, y, x_val, y_val = halves()
    model = RepeatedRidgeSelfDistillation(k, (10.0, 100.0), fit_intercept).fit(x, y, x_val, y_val)
    student = Ridge(model.lambda_, fit_intercept=fit_intercept).fit(x, y)
    for xi in model.xi_:
        student = clone(student).fit(x, xi * student.predict(x) + (1.0 - xi) * y)
    assert model.xi_.shape == model.xi_bar_.shape == (k,)
    np.testing.assert_allclose(model.predict(x_val), student.predict(x_val), rtol=1e-8)
    np.testing.assert_allclose(model.coef_, student.coef_, rtol=1e-8, atol=1e-8)
    assert model.validation_errors_.min() == pytest.approx(np.mean((student.predict(x_val) - y_val) ** 2))


def test_no_other_weights_do_better_on_the_validation_part() -> None:
    x, y, x_val, y_val = halves()
    model = RepeatedRidgeSelfDistillation(1, (100.0,)).fit(x, y, x_val, y_val)
    teacher = Ridge(100.0).fit(x, y)
    for xi in (*(model.xi_ + [0.01, -0.01][i] for i in range(2)), 0.0, 1.0):
        student = Ridge(100.0).fit(x, xi * teacher.predict(x) + (1.0 - xi) * y)
        assert np.mean((student.predict(x_val) - y_val) ** 2) > model.validation_errors_[0]


def test_more_students_never_do_worse_on_the_validation_part() -> None:
    x, y, x_val, y_val = halves()
    errors = [RepeatedRidgeSelfDistillation(k).fit(x, y, x_val, y_val).validation_errors_ for k in range(5)]
    assert all((after <= before * (1.0 + 1e-8)).all() for before, after in pairwise(errors))
    assert errors[4].min() < errors[0].min()


SINGULAR = np.linspace(1.0, 4.0, 10)
PENALTIES = np.geomspace(1e-2, 1e6, 81)


def risk_by_estimator(theta: np.ndarray, k: int) -> float:
    """Excess risk E|X (student - theta)|^2 at the best penalty and weights, unit noise.

    Twenty draws of the noise, +- sqrt(10) e_j, have the mean and the covariance of all draws; with the noiseless targets as
    validation part the estimator minimises the expectation itself.
    """
    design, noise = np.diag(SINGULAR), np.sqrt(10.0) * np.hstack([np.eye(10), -np.eye(10)])
    truth = (design @ theta)[:, None] + np.zeros((10, 20))
    model = RepeatedRidgeSelfDistillation(k, PENALTIES, fit_intercept=False).fit(design, truth + noise, design, truth)
    return 10.0 * float(model.validation_errors_.min())


def risk_by_formula(theta: np.ndarray, k: int) -> float:
    """The same from bias and variance of each direction, which the student multiplies by c q: least squares in q's coefficients."""
    risks = []
    for decay in PENALTIES:
        c = SINGULAR**2 / (SINGULAR**2 + decay)
        rest = np.concatenate([SINGULAR * theta * (c - 1.0), c])
        columns = np.stack([np.concatenate([SINGULAR * theta * c * (c**i - 1.0), c * (c**i - 1.0)]) for i in range(k + 1)][1:] or
                           [np.zeros(20)], 1)
        risks.append(((rest - columns @ np.linalg.lstsq(columns, rest, rcond=None)[0]) ** 2).sum())
    return min(risks)


def test_risk_falls_where_the_truth_lies_along_one_direction_and_not_where_it_is_spread() -> None:
    single, spread = np.eye(10)[9], np.full(10, 10**-0.5)
    risks = [risk_by_estimator(single, k) for k in range(6)]
    assert risks == pytest.approx([risk_by_formula(single, k) for k in range(6)], rel=1e-4)
    assert risks == pytest.approx([3.82, 2.48, 1.33, 1.04, 0.96, 0.94], abs=0.02)
    assert min(risks) > 1.0 / (1.0 + 1.0 / 16.0)  # the best factor for the one direction, 0 for the others: none is better
    assert [risk_by_estimator(spread, k) for k in range(3)] == pytest.approx([3.70] * 3, abs=0.01)


def test_weights_are_recovered_from_coefficients() -> None:
    xi = np.array([0.3, -2.0, 1.5])
    coefficients = np.array([xi[2] * (1 - xi[1]), xi[2] * xi[1] * (1 - xi[0]), xi.prod()])
    np.testing.assert_allclose(teacher_weights(coefficients), xi)
    np.testing.assert_allclose(teacher_weights(np.array([0.5, 0.0])), [0.0, 0.5])  # the last teacher's own teacher does not matter
    np.testing.assert_allclose(teacher_weights(np.zeros(2)), [0.0, 0.0])


def test_several_targets_share_the_weights() -> None:
    x, y, x_val, y_val = halves()
    one = RepeatedRidgeSelfDistillation(2).fit(x, y, x_val, y_val)
    two = RepeatedRidgeSelfDistillation(2).fit(x, np.stack([y, y], 1), x_val, np.stack([y_val, y_val], 1))
    np.testing.assert_allclose(two.predict(x_val)[:, 1], one.predict(x_val), rtol=1e-6)
    assert two.coef_.shape == (2, 10)


def test_nonsense_is_refused() -> None:
    x, y, x_val, y_val = halves()
    for wrong, match in (({"k": -1}, "k=-1"), ({"lambdas": (0.0, 1.0)}, "lambdas"), ({"lambdas": ()}, "lambdas")):
        with pytest.raises(ValueError, match=match):
            RepeatedRidgeSelfDistillation(**wrong).fit(x, y, x_val, y_val)
    with pytest.raises(ValueError, match="must agree in features"):
        RepeatedRidgeSelfDistillation().fit(x, y, x_val[:, :3], y_val)


def test_the_papers_tables_to_three_digits(shared_data: Path) -> None:
    script = runpy.run_path(str(Path(__file__).parents[2] / "scripts" / "repeated_self_distillation_uci.py"))
    for name, published in PUBLISHED.items():
        table = script["load"](shared_data / "uci_regression.npz", name)
        rows = {row["model"]: row["error"] for row in script["errors"](*table, "time", 2)}
        assert [rows[model] for model in ("ridge", "1-step", "2-step")] == pytest.approx(list(published), abs=0.0006)
        mixed = {row["model"]: row["error"] for row in script["errors"](*table, "shuffled", 2)}
        assert mixed["2-step"] == pytest.approx(mixed["ridge"], rel=0.02)
