"""Doubly robust self-training on MNIST with teachers that are strong, equal, weak or biased: what is the correction worth?

    python scripts/doubly_robust_mnist.py mnist.npz --csv doubly_robust_mnist.csv

The first 6000 pictures of MNIST's test file train, its last 4000 test; 600 have labels. An MLP 784-128-10 learns for 20 epochs
(Adam 1e-3, batches of 128 drawn from all 6000, so that every tenth sample has a label) from a fixed teacher's classes on all
samples and from the labels (Zhu et al., NeurIPS 2023, arXiv 2306.00265). Teachers, of 100 epochs: ``strong`` is a convolutional
net that learnt all 600 labels, ``equal`` an MLP like the student that learnt them, ``weak`` one that learnt 100 of them, ``biased``
one that learnt all after 3, 5, 8 were called 3 and 4, 7, 9 were called 9.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_suite.methods.self_training.doubly_robust import doubly_robust_loss
from ssl_suite.programs import write_rows
from ssl_suite.summary import commit

LABELED = 600
BIASED = torch.tensor([0, 1, 2, 3, 9, 3, 6, 9, 3, 9])
TEACHERS = ("strong", "equal", "weak", "biased")
LOSSES = ("labelled", "pseudo", "mixture", "doubly robust, alpha 1", "doubly robust, ramp")


def load(path: Path, seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Training pictures (6000, 784) and classes, labelled ones first, then test pictures (4000, 784) and classes."""
    archive = np.load(path, allow_pickle=False)
    x = torch.from_numpy(archive["test_images"]).flatten(1).float() / 255.0
    y = torch.from_numpy(archive["test_labels"].astype(np.int64))
    order = torch.randperm(6000, generator=torch.Generator().manual_seed(seed))
    return x[order], y[order], x[6000:], y[6000:]


def network(seed: int) -> nn.Sequential:
    """The MLP with the weights of a seed."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(784, 128), nn.ReLU(), nn.Linear(128, 10))


def convolutions(seed: int) -> nn.Sequential:
    """A convolutional net with the weights of a seed."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Unflatten(1, (1, 28, 28)), nn.Conv2d(1, 16, 5, 2), nn.ReLU(), nn.Conv2d(16, 32, 5, 2), nn.ReLU(),
                         nn.Flatten(), nn.Linear(512, 10))


def teacher(kind: str, x: Tensor, y: Tensor, seed: int) -> Tensor:
    """Classes (N,) that a teacher gives to all samples."""
    count, net = 100 if kind == "weak" else LABELED, (convolutions if kind == "strong" else network)(seed + 100)
    target = BIASED[y[:count]] if kind == "biased" else y[:count]
    optimizer = torch.optim.Adam(net.parameters(), 1e-3)
    for _ in range(100):
        for batch in torch.randperm(count).split(128):
            optimizer.zero_grad()
            F.cross_entropy(net(x[batch]), target[batch]).backward()
            optimizer.step()
    with torch.no_grad():
        return net(x).argmax(1)


def student(loss: str, x: Tensor, y: Tensor, guess: Tensor, seed: int, epochs: int = 20) -> nn.Module:
    """A network trained by one of `LOSSES`; the first samples have labels."""
    net = network(seed)
    optimizer = torch.optim.Adam(net.parameters(), 1e-3)
    steps = len(x) // 128 * epochs
    for step in range(steps):
        if step % (len(x) // 128) == 0:
            order = torch.randperm(len(x))
        batch = order[step % (len(x) // 128) * 128 :][:128]
        if loss == "labelled":
            batch = torch.randint(0, LABELED, (128,))
        known, logits = batch < LABELED, net(x[batch])
        pseudo, true = (F.cross_entropy(logits, target[batch], reduction="none") for target in (guess, y))
        if loss in ("labelled", "mixture"):
            value = torch.where(known, true, pseudo).mean()
        elif loss == "pseudo" or not known.any():
            value = pseudo.mean()
        else:
            alpha = (step + 1) / steps if loss.endswith("ramp") else 1.0
            value = doubly_robust_loss(pseudo, true[known], pseudo[known], alpha)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
    return net


def main() -> None:
    """Print the table and write it as CSV."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("path", type=Path, help="mnist.npz")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--csv", type=Path, default=Path("doubly_robust_mnist.csv"), help="file of the table")
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for seed in args.seeds:
        x, y, x_test, y_test = load(args.path, seed)
        for kind in TEACHERS:
            guess = teacher(kind, x, y, seed)
            row: dict[str, str | int | float] = {"seed": seed, "teacher": kind}
            row |= {"teacher accuracy": 100.0 * float((guess == y)[LABELED:].double().mean()),
                    "on the labelled": 100.0 * float((guess == y)[:LABELED].double().mean())}
            row |= {loss: 100.0 * float((student(loss, x, y, guess, seed)(x_test).argmax(1) == y_test).double().mean())
                    for loss in LOSSES}
            rows.append(row)
    write_rows(args.csv, [{**row, "commit": commit()} for row in rows])
    for kind in TEACHERS:
        mine = [row for row in rows if row["teacher"] == kind]
        means = {name: np.mean([float(row[name]) for row in mine]) for name in list(rows[0])[2:]}
        sys.stdout.write(f"{kind:7} " + "  ".join(f"{name} {value:.2f}" for name, value in means.items()) + "\n")


if __name__ == "__main__":
    main()
