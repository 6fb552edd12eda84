"""Test-time training and self-learning on corrupted digits: source nets trained, all streams run, a table at the end.

    python scripts/adaptation_digits.py --method both --seeds 0 1 2

Every figure goes to a CSV file as soon as it is known; a second call goes on where the first stopped. Errors in %.
Set-up: 1000 training and 797 test digits of scikit-learn at 16 pixels, seven corruptions of the family ``digits``,
severity 5.

TTT    CifarResNet 3 x 1 blocks, width 16, GroupNorm, all but the last stage shared, one turn of every digit; 70 epochs;
       300 test digits, one after the other; each step sees 32 shifted copies, each with a turn of its own. Pixels enter as they
       are, in [0, 1], and once more standardised by the training part's mean and deviation.

self   CifarResNet 3 x 1 blocks, width 8, BatchNorm; 30 epochs; 797 test digits in batches of 128, error of the last of 5 passes,
       with batch statistics alone, hard pseudo-labels, TENT and RPL. On five others (speckle, shot, spatter, defocus, jpeg)
       rates of TENT from 1e-2 to 1e-1 all gained; 3e-2 is used for all. Then what goes wrong: a rate of 0.5 (gaussian noise), with
       and without the collapse guard; batches of 64 sorted by class; all seven corruptions mixed.
"""

from __future__ import annotations

import argparse
import csv
import logging
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any, cast

import lightning as L
import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from datamodules.images.digits import DigitsDataModule
from ssl_suite.backbones.images import CifarResNet
from ssl_suite.data.streams import CLEAN, ShiftStreams
from ssl_suite.deploy import Deployed
from ssl_suite.method import Method
from ssl_suite.methods.adaptation.bn_adapt import BatchNormAdapt
from ssl_suite.methods.adaptation.self_learning import SelfLearning
from ssl_suite.methods.adaptation.ttt import TestTimeTraining, TTTAdapter
from ssl_suite.methods.supervised.classifier import Classifier
from ssl_suite.optim import Cosine
from ssl_suite.serving.guard import CollapseGuard
from ssl_suite.serving.stream import Stream
from ssl_suite.summary import commit
from ssl_suite.views.images import Shift

SHIFTS = ("gaussian_noise", "impulse_noise", "gaussian_blur", "contrast", "brightness", "fog", "pixelate")
TTT = ("no_ssl", "joint", "ttt_online", "ttt_forgetting")
LOSSES = {"hard": "hard", "tent": "entropy", "rpl": "rpl"}
SELF = ("source", "bn_stats", *LOSSES, *(f"{m}, rate 0.5{guard}" for m in LOSSES for guard in ("", ", guarded")),
        *(f"{m}, {order}" for order in ("sorted", "mixed") for m in ("source", "bn_stats")))
TRAIN = 1000
PIXELS: dict[str, dict[str, Any]] = {"": {"mean": [0.0], "std": [1.0]}, ", standardised": {}}
PASSES = 5
Cell = tuple[int, str, str]


class Figures(dict[Cell, float]):
    """Figures by (seed, method, shift), kept in a CSV file row by row."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        if path.exists():
            with path.open() as file:
                for row in csv.DictReader(file):
                    super().__setitem__((int(row["seed"]), row["method"], row["shift"]), float(row["value"]))

    def __setitem__(self, cell: Cell, value: float) -> None:
        super().__setitem__(cell, value)
        new = not self.path.exists()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", newline="") as file:
            writer = csv.writer(file)
            if new:
                writer.writerow(["seed", "method", "shift", "value", "commit"])
            writer.writerow([*cell, f"{value:.3f}", commit()])
            file.flush()
        Console().print(f"seed {cell[0]}  {cell[1]:<24} {cell[2]:<16} {value:6.2f}")

    def find(self, cell: Cell, answer: Callable[[Tensor, Tensor], Tensor], batches: Iterable[dict[str, Any]],
             passes: int = 1) -> None:
        """Find out the error of the last pass, unless it is known."""
        if cell not in self:
            self[cell] = [error(answer, batches) for _ in range(passes)][-1]


def digits(seed: int, **statistics: Any) -> DigitsDataModule:
    """1000 digits to train on, 797 to test."""
    data = DigitsDataModule(size=16, test_fraction=1.0 - TRAIN / 1797.0, val_fraction=0.0, batch_size=64, seed=seed,
                            views={"weak": [Shift(fraction=1 / 16)]}, **statistics)
    data.setup()
    return data


def trained(data: DigitsDataModule, seed: int, epochs: int, make: Callable[..., Method],
            backbone: Callable[..., nn.Module]) -> Method:
    """A source model."""
    L.seed_everything(seed, verbose=False)
    optimizer = partial(torch.optim.SGD, lr=0.05, momentum=0.9, weight_decay=5e-4)
    method = make(backbone(data.spec), data.views, num_classes=10, optimizer=optimizer, schedule=Cosine(warmup=0.3))
    trainer = L.Trainer(max_epochs=epochs, accelerator="cpu", devices=1, logger=False, enable_checkpointing=False,
                        enable_progress_bar=False, enable_model_summary=False, use_distributed_sampler=False)
    trainer.fit(method, data.train_dataloader())
    return method.eval()


def error(answer: Callable[[Tensor, Tensor], Tensor], batches: Iterable[dict[str, Any]]) -> float:
    """Error in % of logits that ``answer`` gives for (x, index)."""
    wrong = [(answer(b["x"], b["index"]).argmax(1) != b["y"]).numpy() for b in batches]
    return 100.0 * float(np.mean(np.concatenate(wrong)))


def plain(model: nn.Module) -> Callable[[Tensor, Tensor], Tensor]:
    """A model without adaptation."""
    return lambda x, index: model(x).detach()


def online(adapter: Any) -> Callable[[Tensor, Tensor], Tensor]:
    """Each sample predicted when it arrives."""
    return lambda x, index: adapter.predict_and_adapt(x, index=index)[0]


def run_ttt(table: Figures, seed: int, pixels: str) -> None:
    """No self-supervision, joint training, test-time training online; and what it forgets."""
    names = (*SHIFTS, CLEAN)
    no_ssl, joint, adapted, forgetting, head = (f"{method}{pixels}" for method in (*TTT, "ttt_head"))
    wanted = [(seed, m, s) for m in (no_ssl, joint, adapted) for s in names]
    wanted += [(seed, forgetting, s) for s in SHIFTS] + [(seed, head, "ssl_accuracy")]
    if all(cell in table for cell in wanted):
        return
    data = digits(seed, **PIXELS[pixels])
    streams = ShiftStreams(family="digits", limit=300, seed=seed)
    net = partial(CifarResNet, blocks=1, width=16)
    if not all((seed, no_ssl, s) in table for s in names):
        baseline = Deployed(trained(data, seed, 70, Classifier, net))
        for shift in names:
            table[seed, no_ssl, shift] = error(plain(baseline), streams.batches(data, data.spec, shift))
    method = trained(data, seed, 70, TestTimeTraining, net)
    with torch.no_grad():
        scores = [method.score(batch)["ssl_accuracy"] for batch in data.test_dataloader()]
    table[seed, head, "ssl_accuracy"] = 100.0 * float(sum(s for s, _ in scores)) / sum(n for _, n in scores)
    source = Deployed(method)
    adapter = TTTAdapter(source, views=method.views, lr=3e-2, copies=32, seed=seed)
    for shift in names:
        if (seed, joint, shift) not in table:
            table[seed, joint, shift] = error(plain(source), streams.batches(data, data.spec, shift))
        if (seed, adapted, shift) in table and (shift == CLEAN or (seed, forgetting, shift) in table):
            continue
        adapter.reset()
        table[seed, adapted, shift] = error(online(adapter), streams.batches(data, data.spec, shift))
        if shift != CLEAN:
            clean = streams.batches(data, data.spec, CLEAN)
            table[seed, forgetting, shift] = error(lambda x, index: adapter.predict(x), clean)


def learners(source: nn.Module, lr: float) -> dict[str, SelfLearning]:
    """Hard pseudo-labels, entropy and the robust loss, with SGD."""
    optimizer = partial(torch.optim.SGD, lr=lr, momentum=0.9)
    return {name: SelfLearning(source, loss=cast(Any, loss), optimizer=optimizer) for name, loss in LOSSES.items()}


def run_self(table: Figures, seed: int) -> None:
    """Source, batch statistics alone, and the losses of self-learning; then their failures."""
    data = digits(seed)
    source = Deployed(trained(data, seed, 30, Classifier, partial(CifarResNet, blocks=1, width=8, norm="batch")))
    streams = ShiftStreams(family="digits", seed=seed)
    for shift in SHIFTS:
        batches = list(streams.batches(data, data.spec, shift))
        table.find((seed, "source", shift), plain(source), batches)
        table.find((seed, "bn_stats", shift), online(BatchNormAdapt(source)), batches)
        for name, adapter in learners(source, 3e-2).items():
            table.find((seed, name, shift), online(adapter), batches, PASSES)
    noisy = list(streams.batches(data, data.spec, "gaussian_noise"))
    for name, adapter in learners(source, 0.5).items():
        guarded = Stream(adapter.clone(), source, guard=CollapseGuard())
        table.find((seed, f"{name}, rate 0.5", "gaussian_noise"), online(adapter), noisy, PASSES)
        table.find((seed, f"{name}, rate 0.5, guarded", "gaussian_noise"), online(guarded), noisy, PASSES)
    for order, size in (("sorted", 64), ("mixed", 128)):
        ordered = ShiftStreams(shifts=SHIFTS, family="digits", seed=seed, order=cast(Any, order), batch_size=size)
        for segment in ordered.segments(data, data.spec):
            batches = list(ordered.read(data, data.spec, segment))
            for name, answer in {"source": plain(source), "bn_stats": online(BatchNormAdapt(source))}.items():
                table.find((seed, f"{name}, {order}", segment.name), answer, batches)


def show(table: Figures, methods: Iterable[str], title: str) -> None:
    """Mean over seeds, one row per method."""
    columns = [CLEAN, *SHIFTS, "mixed"]
    out = Table(title=title, title_justify="left")
    for name in ("", *columns, "mean", "by seed"):
        out.add_column(name, justify="right")
    for method in methods:
        seeds = sorted({seed for seed, m, _ in table if m == method})
        values = {s: [table[seed, method, s] for seed in seeds if (seed, method, s) in table] for s in columns}
        found = [[table[k, method, s] for s in columns[1:] if (k, method, s) in table] for k in seeds]
        means = [float(np.mean(values)) for values in found]
        if seeds:
            out.add_row(method, *(f"{np.mean(v):.1f}" if v else "" for v in values.values()), f"{np.mean(means):.1f}",
                        " ".join(f"{m:.1f}" for m in means))
    Console(width=150).print(out)


def main() -> None:
    """Run what the table lacks, then print it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--method", choices=("ttt", "self", "both"), default="both")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--out", type=Path, default=Path("runs/adaptation_digits.csv"))
    args = parser.parse_args()
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    table = Figures(args.out)
    for seed in args.seeds:
        if args.method in ("self", "both"):
            run_self(table, seed)
        if args.method in ("ttt", "both"):
            for pixels in PIXELS:
                run_ttt(table, seed, pixels)
    if args.method in ("ttt", "both"):
        for pixels in PIXELS:
            show(table, [method + pixels for method in TTT], f"Test-time training{pixels}: error, %")
            heads = [value for (_, method, _), value in table.items() if method == f"ttt_head{pixels}"]
            Console().print("rotation head on clean test digits, %: " + " ".join(f"{h:.1f}" for h in heads))
    if args.method in ("self", "both"):
        show(table, SELF, "Self-learning: error, %")


if __name__ == "__main__":
    main()
