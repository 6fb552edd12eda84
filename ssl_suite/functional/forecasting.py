"""How frozen features forecast a series: ridge regression from what is known at one step to all values up to a horizon.

The protocol of TS2Vec (arXiv 2106.10466, section 4.2): one regression for each horizon, its penalty chosen on the validation rows,
errors of values standardised by the training rows.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

PENALTIES = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0)


@dataclass
class Forecast:
    """Errors of a forecast.

    Attributes:
        mse: mean squared error over steps, channels and starting points.
        mae: mean absolute error.
        penalty: what the validation rows chose.
    """

    mse: float
    mae: float
    penalty: float


def future(values: np.ndarray, horizon: int) -> np.ndarray:
    """The ``horizon`` values that follow each row of a series (rows, C), (rows - horizon, horizon * C)."""
    windows = np.lib.stride_tricks.sliding_window_view(values[1:], horizon, axis=0)
    return windows.swapaxes(1, 2).reshape(len(windows), -1)


def pairs(features: np.ndarray, values: np.ndarray, rows: tuple[int, int], horizon: int) -> tuple[np.ndarray, np.ndarray]:
    """Features (n, D) of the rows of a stretch, and what follows each within that stretch, (n, horizon * C).

    Args:
        features: of all rows, (rows, D).
        values: of all rows, (rows, C).
        rows: first row of the stretch, and the row after its last.
        horizon: values ahead.

    Raises:
        ValueError: the stretch is no longer than the horizon.
    """
    low, high = rows
    if high - low <= horizon:
        raise ValueError(f"rows {low} to {high} hold no forecast of {horizon} steps; choose shorter horizons or a longer stretch")
    return features[low : high - horizon], future(values[low:high], horizon)


def ridge_forecast(train: tuple[np.ndarray, np.ndarray], val: tuple[np.ndarray, np.ndarray],
                   test: tuple[np.ndarray, np.ndarray]) -> Forecast:
    """Fit on one part, choose the penalty by root of MSE plus MAE on another (as the official code does), measure on a third.

    The minimum of |y - x w - b|^2 + penalty |w|^2 for all penalties from one decomposition of x'x.

    Args:
        train: features (N, D) and targets (N, M).
        val: the same.
        test: the same.
    """
    x, y = (part.astype(np.float64) for part in train)
    shift, level = x.mean(0), y.mean(0)
    spectrum, axes = np.linalg.eigh((x - shift).T @ (x - shift))
    moments = axes.T @ ((x - shift).T @ (y - level))

    def errors(part: tuple[np.ndarray, np.ndarray], penalty: float) -> tuple[float, float]:
        scaled = ((part[0] - shift) @ axes) / (np.maximum(spectrum, 0.0) + penalty)
        wrong = scaled @ moments + level - part[1]
        return float(np.square(wrong).mean()), float(np.abs(wrong).mean())

    def cost(penalty: float) -> float:
        mse, mae = errors(val, penalty)
        return mse ** 0.5 + mae

    best = min(PENALTIES, key=cost)
    return Forecast(*errors(test, best), best)
