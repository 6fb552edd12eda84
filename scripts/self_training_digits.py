"""Rules of self-training on scikit-learn's digits with three labels a class, by a random forest and by logistic regression.

    python scripts/self_training_digits.py                       # 5 splits; writes docs/tables/self_training_digits.csv
    python scripts/self_training_digits.py --seeds 10 11 --out rows.csv

Half of the digits are held out for the test, in three of the other half's samples of each class the label is given. Accuracy on
the unlabelled samples themselves (transductive) and on the test half.
"""

from __future__ import annotations

import statistics
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table
from sklearn.datasets import load_digits
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression

from ssl_suite.data.splits import class_balanced, hold_out
from ssl_suite.estimators.co_training import CoTraining
from ssl_suite.estimators.self_training import SelfTraining
from ssl_suite.estimators.tri_training import TriTraining
from ssl_suite.functional import selection
from ssl_suite.programs import parser, write_rows
from ssl_suite.summary import commit

ROOT = Path(__file__).resolve().parents[1]


def models(base: Any, seed: int) -> dict[str, Any]:
    """Name -> estimator of every row."""
    rules: dict[str, Any] = {"fixed .7": partial(selection.fixed, threshold=0.7), "above mean": selection.above_mean,
             "margin .3": partial(selection.margin, threshold=0.3), "transductive": selection.transductive,
             "random 10 %": partial(selection.random, seed=seed)}
    return {"supervised": base, **{name: SelfTraining(base, rule) for name, rule in rules.items()},
            "curriculum": SelfTraining(base, selection.curriculum, restart=True, max_iter=5),
            "co-training": CoTraining(base, random_state=seed), "tri-training": TriTraining(base, random_state=seed)}


def scores(base: Any, seed: int, per_class: int, only: list[str]) -> dict[str, tuple[float, float]]:
    """Transductive and test accuracy of every row on one split."""
    X, truth = load_digits(return_X_y=True)
    X = X / 16
    train, test = hold_out(truth, len(truth), 0.5, seed)
    rows = class_balanced(truth, per_class, seed, train)
    pool, y = np.setdiff1d(train, rows), np.full(len(truth), -1)
    y[rows] = truth[rows]
    found = {}
    for name, model in models(base, seed).items():
        if only and name not in only:
            continue
        fitted = model.fit(X[rows], y[rows]) if name == "supervised" else model.fit(X[train], y[train])
        right = [float((fitted.predict(X[part]) == truth[part]).mean()) for part in (pool, test)]
        found[name] = right[0], right[1]
    return found


def main() -> None:
    """Entry point."""
    arguments = parser(__doc__ or "")
    arguments.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2, 3, 4])
    arguments.add_argument("--labels", type=int, default=3, help="labels of each class (default: 3)")
    arguments.add_argument("--only", nargs="*", default=[], metavar="RULE", help="these rows only")
    arguments.add_argument("--out", type=Path, default=ROOT / "docs" / "tables" / "self_training_digits.csv")
    given = arguments.parse_args()
    warnings.filterwarnings("ignore", ".*kept no pseudo-label.*")
    bases = {"forest": lambda seed: RandomForestClassifier(100, random_state=seed), "logistic": lambda seed: LogisticRegression()}
    records, table = [], Table("", "rule", "transductive", "test", title=f"digits, {given.labels} labels a class")
    for name, make in bases.items():
        found = [scores(make(seed), seed, given.labels, given.only) for seed in track(given.seeds, name, transient=True)]
        for row in found[0]:
            cells = []
            for column, metric in enumerate(("transductive", "test")):
                values = [split[row][column] for split in found]
                cells.append(f"{statistics.mean(values):.3f} ± {statistics.stdev(values) if len(values) > 1 else 0.0:.3f}")
                records += [{"classifier": name, "rule": row, "metric": metric, "seed": seed, "value": value, "commit": commit()}
                            for seed, value in zip(given.seeds, values, strict=True)]
            table.add_row(name, row, *cells)
    Console().print(table)
    write_rows(given.out, records)


if __name__ == "__main__":
    main()
