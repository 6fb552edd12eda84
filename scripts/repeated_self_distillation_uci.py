"""Repeated self-distillation of ridge regression on three UCI tables, parts in order of time and shuffled.

    python scripts/repeated_self_distillation_uci.py uci_regression.npz --csv repeated_self_distillation_uci.csv

30 % training, 30 % validation, 40 % test; features and target standardised by the training part; penalty, from decades
1e-4 to 1e5, and weights of the teachers by validation error (Pareek, Du and Oh, NeurIPS 2024, arXiv 2407.04600). The
archive holds NAME_X, NAME_y and NAME_columns for air_quality (target NO2(GT), the analyser's other readings left out),
airfoil and appliances. "refit" is ridge at the penalty chosen, fitted to training and validation part together: what the
validation targets are worth without self-distillation.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
from sklearn.linear_model import Ridge

from ssl_suite.data.splits import chronological
from ssl_suite.estimators.repeated_self_distillation import RepeatedRidgeSelfDistillation
from ssl_suite.programs import write_rows

TABLES = ("air_quality", "airfoil", "appliances")
Row = dict[str, str | int | float]


def load(path: Path, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Features (N, D) and target (N,) of a table, rows in the file's order."""
    archive = np.load(path, allow_pickle=False)
    x, y = archive[f"{name}_X"], archive[f"{name}_y"]
    if name != "air_quality":
        return x, y
    columns = archive["air_quality_columns"].tolist()
    features = [i for i, c in enumerate(columns) if not c.endswith("(GT)")]
    return x[:, features], x[:, columns.index("NO2(GT)")]


def errors(x: np.ndarray, y: np.ndarray, order: str, most: int) -> list[Row]:
    """Test errors of ridge regression, of 1 to ``most`` students, and of ridge refitted on what both were chosen on."""
    rows = np.arange(len(y)) if order == "time" else np.random.default_rng(0).permutation(len(y))
    train, val, test = (rows[part] for part in chronological(len(y), 0.3, 0.3))
    x = (x - x[train].mean(0)) / x[train].std(0)
    y = (y - y[train].mean()) / y[train].std()
    found: list[Row] = []
    for k in range(most + 1):
        model = RepeatedRidgeSelfDistillation(k).fit(x[train], y[train], x[val], y[val])
        error = float(np.mean((model.predict(x[test]) - y[test]) ** 2))
        weights = " ".join(f"{xi:.4g}" for xi in model.xi_)
        name = f"{k}-step" if k else "ridge"
        found.append({"order": order, "model": name, "lambda": model.lambda_, "xi": weights, "error": error})
        if not k:
            both = np.concatenate([train, val])
            refit = Ridge(alpha=model.lambda_).fit(x[both], y[both])
            error = float(np.mean((refit.predict(x[test]) - y[test]) ** 2))
            found.append({**found[-1], "model": "refit", "error": error})
    return found


def main() -> None:
    """Print the table and write it as CSV."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("path", type=Path, help="archive of the tables")
    parser.add_argument("--steps", type=int, default=2, help="most students")
    parser.add_argument("--csv", type=Path, default=Path("repeated_self_distillation_uci.csv"), help="file of the table")
    args = parser.parse_args()
    rows = [{"data": name, **row} for name in TABLES for order in ("time", "shuffled")
            for row in errors(*load(args.path, name), order, args.steps)]
    write_rows(args.csv, rows)
    for row in rows:
        sys.stdout.write("  ".join(f"{value:.4g}" if isinstance(value, float) else f"{value:<11}" for value in row.values()) + "\n")


if __name__ == "__main__":
    main()
