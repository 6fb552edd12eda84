"""Ridge forecasts against scikit-learn, and what each target is."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.linear_model import Ridge

from ssl_suite.functional.forecasting import PENALTIES, future, pairs, ridge_forecast


def test_what_follows_a_row() -> None:
    values = np.stack([np.arange(6), 10 * np.arange(6)], axis=1)
    ahead = future(values, 2)
    assert ahead.shape == (4, 4)
    assert ahead[0].tolist() == [1, 10, 2, 20], "step by step, all channels of each"
    assert ahead[-1].tolist() == [4, 40, 5, 50]


def test_a_stretch_keeps_to_itself() -> None:
    x, y = pairs(np.arange(10)[:, None], np.arange(10)[:, None], (3, 8), 2)
    assert x.ravel().tolist() == [3, 4, 5]
    assert y.tolist() == [[4, 5], [5, 6], [6, 7]], "nothing of row 8 and later"
    with pytest.raises(ValueError, match="rows 3 to 5 hold no forecast of 2 steps"):
        pairs(x, x, (3, 5), 2)


def test_it_is_the_best_of_scikit_learns_ridge_regressions() -> None:
    rng = np.random.default_rng(0)
    weights = rng.normal(size=(12, 5))
    parts = []
    for n in (60, 40, 50):
        x = rng.normal(size=(n, 12)) + 1.0
        parts.append((x, x @ weights + 3.0 * rng.normal(size=(n, 5)) + 2.0))
    train, val, test = parts
    fitted = {a: Ridge(alpha=a).fit(*train) for a in PENALTIES}

    def errors(model: Ridge, part: tuple[np.ndarray, np.ndarray]) -> tuple[float, float]:
        wrong = model.predict(part[0]) - part[1]
        return float(np.square(wrong).mean()), float(np.abs(wrong).mean())

    best = min(PENALTIES, key=lambda a: errors(fitted[a], val)[0] ** 0.5 + errors(fitted[a], val)[1])
    found = ridge_forecast(train, val, test)
    assert found.penalty == best not in (PENALTIES[0], PENALTIES[-1])
    assert (found.mse, found.mae) == pytest.approx(errors(fitted[best], test))
