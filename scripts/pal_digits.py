"""What are questions worth? Closed-form PAL on digits: pairs asked at random or where the gradient is largest.

    python scripts/pal_digits.py                                  # seeds 0 1 2; writes docs/tables/pal_digits.csv
    python scripts/pal_digits.py --seeds 10 --noise 0.02 --out rows.csv

70 % of the digits for training, four views of each, 400 Nystroem features of an RBF kernel (gamma 0.05), embeddings of width 16 by
the closed form of the spectral loss. Ten rounds: embed by the answers so far, ask a tenth of the questions, labels answer. Accuracy
on the other 30 % of the nearest class mean by cosine with one labelled sample a class, mean of 20 draws. ``all labels``
knows the whole graph; its purity is that of ten clusters of the training embeddings.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from sklearn.cluster import KMeans
from sklearn.datasets import load_digits
from sklearn.kernel_approximation import Nystroem

from ssl_suite.data.relations import SimilarityGraph, Strategy, ask, from_labels
from ssl_suite.data.splits import hold_out
from ssl_suite.functional.relations import spectral_map
from ssl_suite.functional.spectrum import on_sphere
from ssl_suite.programs import parser, write_rows
from ssl_suite.summary import commit
from ssl_suite.views import Views
from ssl_suite.views.images import Affine, Brightness, Cutout, GaussianNoise

ROOT = Path(__file__).resolve().parents[1]
VIEWS, ROUNDS, WIDTH = 4, 10, 16
Row = dict[str, Any]


def kernel_features(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Features (n, m, P) of views of the training digits, their clean features and classes, those of the test digits."""
    x, y = load_digits(return_X_y=True)
    train, test = hold_out(y, len(y), 0.3, seed)
    pictures = torch.from_numpy(x / 16.0).float().view(-1, 1, 8, 8)
    augment = Views({"crop": [Affine(20, 0.075, (0.85, 1.15)), Brightness(0.6, 1.4), GaussianNoise(0.1), Cutout(0.25, 0.0)]}, seed)
    index = torch.from_numpy(train)
    views = augment({"x": pictures[index], "index": index}, *["crop"] * VIEWS)
    kernel = Nystroem(gamma=0.05, n_components=400, random_state=seed).fit(x[train] / 16.0)
    phi = np.stack([kernel.transform(view.flatten(1).numpy()) for view in views], axis=1)
    return phi, kernel.transform(x[train] / 16.0), y[train], kernel.transform(x[test] / 16.0), y[test]


def one_shot(z: np.ndarray, y: np.ndarray, z_test: np.ndarray, y_test: np.ndarray, seed: int, draws: int = 20) -> float:
    """Mean accuracy in percent of the nearest sample by cosine, with one labelled sample of each class."""
    z, z_test, scores = on_sphere(z), on_sphere(z_test), []
    for draw in range(draws):
        rng = np.random.default_rng((seed, draw))
        shown = np.array([rng.choice(np.flatnonzero(y == c)) for c in range(10)])
        scores.append(((z_test @ z[shown].T).argmax(1) == y_test).mean())
    return 100.0 * float(np.mean(scores))


def asked(seed: int, strategy: Strategy, budget: int, noise: float) -> Row:
    """Accuracy before, half-way and after the questions of one seed, and how often the answer was "same"."""
    phi, clean, y, clean_test, y_test = kernel_features(seed)
    graph, rng = SimilarityGraph(len(y)), np.random.default_rng(seed)
    curve, answers = [], list[bool]()

    def oracle(i: int, j: int) -> bool:
        return bool(y[i] == y[j]) ^ bool(rng.random() < noise)

    for step in range(ROUNDS + 1):
        projection = spectral_map(phi, graph.components(), WIDTH)
        curve.append(one_shot(clean @ projection, y, clean_test @ projection, y_test, seed))
        if step < ROUNDS:
            due = (step + 1) * budget // ROUNDS - len(answers)
            answers += ask(graph, np.arange(len(y)), clean @ projection, oracle, due, strategy, rng)
    return {"seed": seed, "strategy": strategy, "budget": budget, "asked": len(answers), "yes": sum(answers), "start": curve[0],
            "half": curve[ROUNDS // 2], "end": curve[-1], "curve": " ".join(f"{value:.1f}" for value in curve)}


def all_labels(seed: int) -> Row:
    """The same with the graph that all labels imply, and the purity of its clusters in percent."""
    phi, clean, y, clean_test, y_test = kernel_features(seed)
    projection = spectral_map(phi, from_labels(len(y), np.arange(len(y)), y).components(), 10)
    groups = KMeans(10, n_init=10, random_state=seed).fit_predict(on_sphere(clean @ projection))
    purity = sum(np.bincount(y[groups == g]).max() for g in np.unique(groups)) / len(y)
    return {"seed": seed, "strategy": "all labels", "end": one_shot(clean @ projection, y, clean_test @ projection, y_test, seed),
            "purity": 100.0 * purity}


def main() -> None:
    """Print the table and write it as CSV."""
    arguments = parser(__doc__ or "")
    arguments.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    arguments.add_argument("--budgets", type=int, nargs="+", default=[1000, 2000], help="questions")
    arguments.add_argument("--noise", type=float, default=0.0, help="share of wrong answers")
    arguments.add_argument("--out", type=Path, default=ROOT / "docs" / "tables" / "pal_digits.csv", help="CSV file to write")
    given = arguments.parse_args()
    torch.set_num_threads(1)
    rows = [asked(seed, strategy, budget, given.noise) for budget in given.budgets for strategy in ("passive", "active")
            for seed in given.seeds] + [all_labels(seed) for seed in given.seeds]
    write_rows(given.out, [{**row, "commit": commit()} for row in rows])
    columns = ("seed", "strategy", "budget", "asked", "yes", "start", "half", "end", "purity")
    table = Table(*columns)
    for row in rows:
        table.add_row(*(f"{row[c]:.1f}" if isinstance(row.get(c), float) else str(row.get(c, "")) for c in columns))
    Console().print(table)


if __name__ == "__main__":
    main()
