"""T-similarity on digits whose labels were not chosen at random: does a curriculum by agreement beat one by softmax?

    python scripts/t_similarity_digits.py --csv t_similarity_digits.csv

Ten labelled digits a class, drawn at random or with a bias towards both ends of each class's first principal component
(Odonnat et al., AISTATS 2024, arXiv 2310.14814), 25 % of the set for the test. An encoder 64-32-16-8 with a predicting head and
five heads learns for 500 steps of Adam; a curriculum then takes the surest 20 % of the unlabelled samples, with their predicted
classes, starts afresh, takes 40 %, and so on to all. ``softmax`` and ``agreement`` say what "surest" means; ``balanced`` gives
the labelled samples and the guessed ones half of each batch (arXiv 2202.12040, where both groups weigh the same), in place of
one pool in which a hundred labels drown.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn

from ssl_suite.batch import Batch
from ssl_suite.data.splits import hold_out, selection_bias_pca
from ssl_suite.methods.self_training.t_similarity import TSimilarity
from ssl_suite.programs import write_rows
from ssl_suite.summary import commit
from ssl_suite.views import Views

Row = dict[str, str | int | float]


class Encoder(nn.Sequential):
    """The paper's encoder for more than 50 inputs: each layer half as wide."""

    num_features = 8

    def __init__(self) -> None:
        super().__init__(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 8), nn.ReLU())

    def forward(self, x: Tensor, length: Tensor | None = None) -> Tensor:
        """Representations (B, 8)."""
        return super().forward(x)


def split(seed: int, bias: float) -> tuple[Tensor, Tensor, np.ndarray, np.ndarray, np.ndarray]:
    """Standardised digits (1797, 64), their classes, and the labelled, unlabelled and test rows."""
    x, y = load_digits(return_X_y=True)
    train, test = hold_out(y, len(y), 0.25, seed)
    x = (x - x[train].mean(0)) / np.maximum(x[train].std(0), 1e-3)
    labeled = train[selection_bias_pca(x[train], y[train], bias, seed, per_class=10)]
    return torch.from_numpy(x).float(), torch.from_numpy(y), labeled, np.setdiff1d(train, labeled), test


def batch(x: Tensor, rows: Tensor) -> Batch:
    """Rows as a batch."""
    return {"x": x[rows], "index": rows}


def fit(x: Tensor, y: Tensor, labeled: list[Tensor], unlabeled: Tensor, seed: int, diversity: float, steps: int) -> TSimilarity:
    """A network trained from new weights on groups of rows with labels ``y``, each as often in a batch, and on rows without."""
    torch.manual_seed(seed)
    method = TSimilarity(Encoder(), Views({"weak": []}), num_classes=10, diversity=diversity)
    optimizer = torch.optim.Adam(method.parameters(), 1e-3)
    for _ in range(steps):
        mine = torch.cat([rows[torch.randint(0, len(rows), (32 // len(labeled),))] for rows in labeled])
        others = unlabeled[torch.randint(0, len(unlabeled), (32,))]
        optimizer.zero_grad()
        method.step({"labeled": {**batch(x, mine), "y": y[mine]}, "unlabeled": batch(x, others)}).loss.backward()
        optimizer.step()
    return method.eval()


@torch.no_grad()
def judged(method: TSimilarity, x: Tensor, rows: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Predicted classes of rows, and how sure of each by softmax and by agreement."""
    p = method.logits(batch(x, rows)).softmax(1)
    return p.argmax(1), {"softmax": p.amax(1), "agreement": method.confidence(batch(x, rows))}


def curriculum(first: TSimilarity, score: str, balanced: bool, x: Tensor, y: Tensor, labeled: Tensor, unlabeled: Tensor, seed: int,
               diversity: float, steps: int) -> TSimilarity:
    """Five rounds from a first network, each on the surest 20 to 100 % of what the one before predicts."""
    method = first
    for part in range(1, 6):
        guess, sure = judged(method, x, unlabeled)
        chosen = sure[score].argsort(descending=True)[: len(unlabeled) * part // 5]
        targets = y.clone()
        targets[unlabeled[chosen]] = guess[chosen]
        groups = [labeled, unlabeled[chosen]] if balanced else [torch.cat([labeled, unlabeled[chosen]])]
        method = fit(x, targets, groups, unlabeled, seed + 1000 * part, diversity, steps)
    return method


def experiment(seed: int, bias: float, diversity: float, steps: int) -> Row:
    """Test accuracies of one split in percent, and how well each score tells right from wrong on it."""
    x, y, *parts = split(seed, bias)
    labeled, unlabeled, test = (torch.from_numpy(part) for part in parts)
    first = fit(x, y, [labeled], unlabeled, seed, diversity, steps)
    guess, sure = judged(first, x, unlabeled)
    row: Row = {"seed": seed, "bias": bias, "diversity": diversity}
    row |= {f"auroc {name}": float(roc_auc_score(guess == y[unlabeled], value)) for name, value in sure.items()}
    networks = {"supervised": first} | {
        f"{'balanced ' if balanced else ''}curriculum {score}":
            curriculum(first, score, balanced, x, y, labeled, unlabeled, seed, diversity, steps)
        for balanced in (False, True) for score in sure}
    return row | {name: 100.0 * float((judged(net, x, test)[0] == y[test]).double().mean()) for name, net in networks.items()}


def main() -> None:
    """Print the table and write it as CSV."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(9)))
    parser.add_argument("--bias", type=float, nargs="+", default=[0.0, 0.5, 0.7, 1.0],
                        help="strengths of the bias; 0 is none, 0.5 the paper's for these digits (default: 0 0.5 0.7 1)")
    parser.add_argument("--diversity", type=float, nargs="+", default=[1.0, 2.0],
                        help="weights of the heads' agreement; the paper's is 1 (default: 1 2)")
    parser.add_argument("--steps", type=int, default=500, help="steps of every network")
    parser.add_argument("--csv", type=Path, default=Path("t_similarity_digits.csv"), help="file of the table")
    args = parser.parse_args()
    torch.set_num_threads(1)
    cells = list(itertools.product(args.diversity, args.bias))
    rows = [experiment(seed, bias, diversity, args.steps) for diversity, bias in cells for seed in args.seeds]
    write_rows(args.csv, [{**row, "commit": commit()} for row in rows])
    for diversity, bias in cells:
        mine = [row for row in rows if (row["diversity"], row["bias"]) == (diversity, bias)]
        numbers = {name: np.array([float(row[name]) for row in mine]) for name in list(rows[0])[3:]}
        spread = {name: f"{v.mean():.3g} ± {v.std(ddof=1) if len(v) > 1 else 0.0:.2g}" for name, v in numbers.items()}
        scores = "  ".join(f"{name} {text}" for name, text in spread.items())
        sys.stdout.write(f"diversity {diversity:g}, bias {bias:g}: {scores}\n")


if __name__ == "__main__":
    main()
