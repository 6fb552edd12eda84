"""Does one plateau forget less than a cosine for each data set? Masked digits in three domains, one after the other.

    python scripts/masked_digits.py --csv masked_digits.csv                 # seeds 0, 1 and 2, each arm at its own rate
    python scripts/masked_digits.py --seeds 10 11 --rates 1e-3 3e-3 1e-2    # for choosing others

A perceptron 128-256-256-64 rebuilds the hidden 60 % of the 2x2 patches of scikit-learn's digits from the others and the mask
(the small masked autoencoder on which Singh et al., "Beyond Cosine Decay", CoLLAs 2025, arXiv 2503.02844, is tried here), 500 steps
a domain with AdamW. The domains are upright, turned by a quarter and inverted, or the milder upright, tilted and dimmed. A domain
goes on from weights and moments of the one before: from its end under ``cosine`` and ``constant``, from its plateau under
``infinite``.
``replay`` takes a quarter of each batch from 200 samples kept of each earlier domain. Errors are of test digits, masks fixed.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from datamodules.images.digits import changed
from ssl_suite.data.splits import hold_out
from ssl_suite.optim import Constant, Cosine, Infinite
from ssl_suite.programs import write_rows
from ssl_suite.summary import commit

SEQUENCES = {"brutal": ("upright", "turned", "inverted"), "mild": ("upright", "tilted", "dimmed")}
ARMS = ("cosine", "infinite", "constant")
RATES = {"brutal": {"cosine": 2e-3, "infinite": 5e-3, "constant": 1e-3},
         "mild": {"cosine": 5e-3, "infinite": 5e-3, "constant": 2e-3}}
"""Best of five rates, of four for the constant one, without replay, seeds 10 and 11."""
BATCH, HIDDEN, BUFFER, REPLAY = 128, 0.6, 200, 0.25
Row = dict[str, str | float]


def domain(name: str, seed: int) -> tuple[Tensor, Tensor]:
    """Training and test digits (N, 64) in [0, 1] of a domain."""
    pixels, y = load_digits(return_X_y=True)
    x = changed(np.round(pixels * (255.0 / 16.0)).astype(np.uint8).reshape(-1, 1, 8, 8), name)
    flat = torch.from_numpy(x.reshape(len(x), 64)).float() / 255.0
    train, test = hold_out(y, len(y), 0.3, seed, "test")
    return flat[train], flat[test]


def masks(n: int, generator: torch.Generator) -> Tensor:
    """Hidden pixels (N, 64) of n pictures, as 1.0: 10 of the 16 patches."""
    order = torch.rand(n, 16, generator=generator).argsort(1).argsort(1)
    return (order < round(HIDDEN * 16)).float().view(n, 4, 1, 4, 1).expand(-1, -1, 2, -1, 2).reshape(n, 64)


def error(net: nn.Module, x: Tensor, mask: Tensor) -> Tensor:
    """Mean squared error over hidden pixels, in units of their variance over all digits (about 0.14)."""
    wrong = (net(torch.cat([x * (1.0 - mask), mask], dim=1)) - x).square()
    return (wrong * mask).sum() / mask.sum() / 0.14


def tested(net: nn.Module, x: Tensor) -> float:
    """Error on test digits, each under four masks that are always the same."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        return float(np.mean([error(net, x, masks(len(x), generator)).item() for _ in range(4)]))


def schedules(name: str, later: bool) -> Constant | Cosine | Infinite:
    """Schedule of the first domain, or of a later one."""
    if name == "infinite":
        return Infinite(warmup=0.05, cooldown=0.3, plateau=0.75, constant=1 / 3, final=1 / 300, first=not later)
    return Cosine(warmup=0.05, final=1 / 300) if name == "cosine" else Constant()


def one_run(sequence: Sequence[str], arm: str, rate: float, replay: bool, seed: int, steps: int) -> dict[str, float]:
    """Test errors after the last domain, and what there is to say of it: ``mean``, ``first``, ``newest``, ``unannealed``."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    net = nn.Sequential(nn.Linear(128, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 64))
    optimizer = torch.optim.AdamW(net.parameters(), lr=rate)
    data, old, gains = [domain(name, seed) for name in sequence], torch.empty(0, 64), []
    for number, (train, test) in enumerate(data):
        schedule, kept, unannealed = schedules(arm, number > 0), None, float("nan")
        for step in range(steps):
            if arm == "infinite" and step == round(0.75 * steps):
                kept, unannealed = copy.deepcopy((net.state_dict(), optimizer.state_dict())), tested(net, test)
            optimizer.param_groups[0]["lr"] = rate * schedule(step, steps)
            again = round(REPLAY * BATCH) if replay and number else 0
            parts = [pool[torch.randint(len(pool), (size,), generator=generator)]
                     for pool, size in ((train, BATCH - again), (old, again)) if size]
            optimizer.zero_grad()
            error(net, torch.cat(parts), masks(BATCH, generator)).backward()
            optimizer.step()
        gains.append(1.0 - tested(net, test) / unannealed)
        ends = [tested(net, x) for _, x in data]
        old = torch.cat([old, train[torch.randperm(len(train), generator=generator)[:BUFFER]]])
        if kept is not None:
            net.load_state_dict(kept[0])
            optimizer.load_state_dict(kept[1])
    return {"mean": float(np.mean(ends)), "first": ends[0], "newest": ends[-1], "annealing": float(np.mean(gains))}


def table(sequences: Sequence[str], arms: Sequence[str], replays: Sequence[bool], seeds: Sequence[int],
          rates: Sequence[float] | None) -> list[Row]:
    """A row for each sequence, arm, rate and seed."""
    rows: list[Row] = []
    for name, arm, replay, seed in itertools.product(sequences, arms, replays, seeds):
        for rate in rates or (RATES[name][arm],):
            found = one_run(SEQUENCES[name], arm, rate, replay, seed, 500)
            rows.append({"sequence": name, "arm": f"{arm}, replay" if replay else arm, "rate": rate, "seed": seed, **found})
    return rows


def main() -> None:
    """Print means over the seeds and write all rows as CSV."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sequences", nargs="+", choices=SEQUENCES, default=list(SEQUENCES))
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--replay", nargs="+", type=int, choices=(0, 1), default=[0, 1], help="without and with (default: both)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--rates", type=float, nargs="+", help="for every arm (default: those chosen for each)")
    parser.add_argument("--csv", type=Path, help="write a row for each run")
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows = table(args.sequences, args.arms, [bool(r) for r in args.replay], args.seeds, args.rates)
    if args.csv:
        write_rows(args.csv, [{**row, "commit": commit()} for row in rows])
    columns = ("mean", "first", "newest", "annealing")
    sys.stdout.write(f"{'':34}" + "".join(f"{c:>18}" for c in columns) + "\n")
    for key in dict.fromkeys((row["sequence"], row["arm"], row["rate"]) for row in rows):
        own = [row for row in rows if (row["sequence"], row["arm"], row["rate"]) == key]
        cells = [np.array([float(row[c]) for row in own]) for c in columns]
        told = "".join(f"{v.mean():11.4f} ±{v.std(ddof=1) if len(v) > 1 else 0.0:.4f}" for v in cells)
        sys.stdout.write(f"{key[0]:8}{key[1]:18}{key[2]:<8.3g}{told}\n")


if __name__ == "__main__":
    main()
