"""Policy adaptation during deployment on PointReach: policies trained, episodes run under shifts, a table and a picture.

    python scripts/pad_point_reach.py --seeds 0 1 2 3

Needs the extra ``control``. Every row goes to a CSV file as soon as it is known, with seed, commit and command; a second call
goes on where the first stopped. A policy clones the straight-line expert on 6000 states with an inverse-dynamics head; then 60
episodes of 30 steps under each shift, weights carried along, success and distance over the second half. Whoever explores adds
noise to the actions, of deviation 1 in the first third and 0.2 from then on. All settings were chosen on seeds 10 to 17.

none      no adaptation
noisy     no adaptation, but the noise: what exploration alone does
replay    one Adam step of first convolution and head per transition, on 32 draws from the last 512 transitions
whole     the same of all layers
copies    of all layers, on 32 shifted copies of the newest transition (the paper's)
calm      replay without exploration, as the paper acts: the head may then guess an action from the first observation alone
unshared  none and replay with a policy that shares nothing with the head: nothing may be gained
"""

from __future__ import annotations

import argparse
import csv
import logging
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from torch import Tensor

from datamodules.images.point_reach import PointReachDataModule
from ssl_suite.backbones.images import PixelEncoder
from ssl_suite.deploy import Deployed
from ssl_suite.environments.episodes import run_episode
from ssl_suite.environments.point_reach import REACH, gymnasium
from ssl_suite.methods.adaptation.pad import PADAdapter, PolicyAdaptation
from ssl_suite.nn.fork import Shared
from ssl_suite.optim import Cosine
from ssl_suite.summary import commit
from ssl_suite.views.images import Shift

SHIFTS: dict[str, dict[str, Any]] = {
    "clean": {}, "background_0.05": {"background": 0.05}, "background_0.1": {"background": 0.1},
    "background_0.4": {"background": 0.4}, "contrast_0.5": {"contrast": 0.5}}
ARMS: dict[str, tuple[int | None, Shared, bool]] = {
    "none": (None, "all", False), "noisy": (None, "all", True), "replay": (512, 1, True), "whole": (512, "all", True),
    "copies": (1, "all", True), "calm": (512, 1, False)}
"""{arm: transitions kept, None without adaptation; stages that learn; whether it explores}."""
NOISE = (1.0, 0.2)
"""Standard deviation of exploration in the first third of the episodes, and in the others."""
SHARED: tuple[Shared, ...] = ("all", "none")
EVERYWHERE, CLOSER = ("none", "replay"), "background_0.1"
"""Arms for every shift; the shift for all others."""
COLUMNS = ("seed", "shift", "arm", "success", "distance", "loss_first", "loss_last", "updates", "refused", "loss_training",
           "seconds", "commit", "command", "distances")
Row = dict[str, Any]


def trained(seed: int, shared: Shared, epochs: int) -> PolicyAdaptation:
    """A policy, its head, and the loss that training ended with."""
    L.seed_everything(seed, verbose=False)
    data = PointReachDataModule(seed=seed, val_fraction=0.0, batch_size=64, mean=[0.0], std=[1.0], views={"weak": [Shift(2 / 28)]})
    data.setup()
    encoder = PixelEncoder(data.spec, layers=3, width=16, num_features=64, crop=24, halving=3)
    method = PolicyAdaptation(encoder, data.views, hidden=128, shared=shared, optimizer=partial(torch.optim.Adam, lr=2e-3),
                              schedule=Cosine(warmup=0.05))
    trainer = L.Trainer(max_epochs=epochs, accelerator="cpu", devices=1, logger=False, enable_checkpointing=False,
                        enable_progress_bar=False, enable_model_summary=False, use_distributed_sampler=False)
    trainer.fit(method, data.train_dataloader())
    return method.eval()


def episodes(method: PolicyAdaptation, arm: str, shift: dict[str, Any], count: int, seed: int, lr: float,
             progress: Progress) -> Row:
    """Episodes of an arm, one after the other."""
    (replay, stages, explores), rng, noise = ARMS[arm], np.random.default_rng((seed, 23)), 0.0
    env, source = gymnasium.make("ssl_suite/PointReach-v0", **shift), Deployed(method)
    adapter = PADAdapter(source, views=method.views, replay=replay or 1, stages=stages, lr=lr, seed=seed)
    losses, updates, refused, distances = [], 0, False, []
    mean, std = method.views.mean, method.views.std

    def act(observation: np.ndarray, info: dict[str, Any]) -> np.ndarray:
        nonlocal updates, refused
        x: Tensor = (torch.from_numpy(observation)[None].float() / 255.0 - mean) / std
        if replay is None:
            action = adapter.predict(x)
        else:
            adapter.executed(torch.from_numpy(info["action"])[None])
            action, report = adapter.predict_and_adapt(x)
            losses.extend([report.loss] if report.loss else [])
            updates, refused = updates + report.n_used, refused or "out of range" in report.reason
        return np.clip(action[0].numpy() + noise * rng.standard_normal(2), -1.0, 1.0)

    started, task = time.process_time(), progress.add_task("episodes", total=count)
    for number in range(count):
        noise = NOISE[number >= count / 3] if explores else 0.0
        adapter.start()
        distances.append(run_episode(env, act, seed=10_000 * seed + number).infos[-1]["distance"])
        progress.advance(task)
    progress.remove_task(task)
    late = np.array(distances[count // 2:])
    return {"success": round(100.0 * float(np.mean(late < REACH)), 1), "distance": round(float(late.mean()), 2),
            "loss_first": round(float(np.mean(losses[:20])), 4) if losses else "",
            "loss_last": round(float(np.mean(losses[-200:])), 4) if losses else "", "updates": updates, "refused": refused,
            "seconds": round(time.process_time() - started, 1), "distances": " ".join(f"{d:.2f}" for d in distances)}


def read(path: Path) -> list[Row]:
    """Rows that are known."""
    if not path.exists():
        return []
    with path.open() as file:
        return list(csv.DictReader(file))


def write(path: Path, row: Row) -> None:
    """Add a row."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        if new:
            writer.writeheader()
        writer.writerow(row)


def run(path: Path, seed: int, shared: Shared, args: argparse.Namespace, progress: Progress) -> None:
    """Whatever the file lacks of one seed, with one kind of policy."""
    known = {(r["shift"], r["arm"]) for r in read(path) if int(r["seed"]) == seed}
    cells = ([(s, a, a) for s in SHIFTS for a in ARMS if a in EVERYWHERE or s == CLOSER] if shared == "all" else
             [(CLOSER, f"unshared_{a}", a) for a in EVERYWHERE])
    wanted = [cell for cell in cells if cell[:2] not in known]
    if not wanted:
        return
    progress.console.print(f"seed {seed}: training, shared={shared}")
    method = trained(seed, shared, args.epochs)
    for shift, name, arm in wanted:
        row = {"seed": seed, "shift": shift, "arm": name, "commit": commit(),
               "command": f"scripts/pad_point_reach.py --episodes {args.episodes} --epochs {args.epochs} --lr {args.lr}",
               "loss_training": round(float(method.pretext.typical), 4),
               **episodes(method, arm, SHIFTS[shift], args.episodes, seed, args.lr, progress)}
        write(path, row)
        progress.console.print(f"seed {seed}  {shift:<15} {name:<16} success {row['success']:5.1f} %  "
                               f"{row['distance']:5.2f} px  {'refused' if row['refused'] else ''}")


def show(rows: Sequence[Row]) -> None:
    """Success by seed and its mean, one line per shift and arm."""
    table = Table(title="PointReach: success over the last half, % (distance, px)", title_justify="left")
    seeds = sorted({int(r["seed"]) for r in rows})
    for name in ("shift", "arm", *(f"seed {s}" for s in seeds), "mean"):
        table.add_column(name, justify="left" if name in ("shift", "arm") else "right", no_wrap=True)
    for cell in sorted({(r["shift"], r["arm"]) for r in rows}):
        own = {int(r["seed"]): r for r in rows if (r["shift"], r["arm"]) == cell}
        text = [f"{float(own[s]['success']):.0f} ({float(own[s]['distance']):.1f})" if s in own else "" for s in seeds]
        table.add_row(*cell, *text, f"{np.mean([float(r['success']) for r in own.values()]):.1f}")
    Console(width=150).print(table)


def draw(path: Path, rows: Sequence[Row]) -> None:
    """Frames of an episode clean and shifted, and the final distance over episodes."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.0, 1.0 * len(SHIFTS) + 3.0), layout="constrained")
    upper, lower = np.asarray(figure.subfigures(2, 1, height_ratios=(1.0 * len(SHIFTS), 3.0)))
    for axes, (name, shift) in zip(upper.subplots(len(SHIFTS), 8), SHIFTS.items(), strict=True):
        env = gymnasium.make("ssl_suite/PointReach-v0", **shift)
        frames = run_episode(env, lambda observation, info: info["expert"] / 2, seed=0).observations[:24:3]
        for axis, frame in zip(axes, frames, strict=True):
            axis.imshow(frame[0], cmap="gray", vmin=0, vmax=255)
            axis.set(xticks=[], yticks=[])
        axes[0].set_ylabel(name.replace("_", "\n"), fontsize=7)
    for axis, name in zip(lower.subplots(1, len(SHIFTS), sharey=True), SHIFTS, strict=True):
        for arm, colour in zip(ARMS, ("0.6", "0.8", "tab:orange", "tab:red", "tab:blue", "tab:green"), strict=True):
            runs = [np.array(r["distances"].split(), float) for r in rows if (r["shift"], r["arm"]) == (name, arm)]
            if runs:
                mean = np.mean(runs, axis=0)
                axis.plot(np.convolve(mean, np.ones(5) / 5, "valid"), color=colour, label=arm)
        axis.axhline(REACH, color="black", linewidth=0.5, linestyle=":")
        axis.set_title(name, fontsize=8)
        axis.set_xlabel("episode")
    lower.axes[0].set_ylabel("final distance, px")
    lower.axes[list(SHIFTS).index(CLOSER)].legend(fontsize=7)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def main() -> None:
    """Run what the file lacks, then print and draw it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--out", type=Path, default=Path("docs/tables/pad_point_reach.csv"))
    parser.add_argument("--picture", type=Path, default=Path("docs/pictures/pad_point_reach.png"))
    parser.add_argument("--episodes", type=int, default=60)
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--lr", type=float, default=2e-3)
    args = parser.parse_args()
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    with Progress(transient=True) as progress:
        for seed, shared in ((seed, shared) for shared in SHARED for seed in args.seeds):
            run(args.out, seed, shared, args, progress)
    rows = read(args.out)
    show(rows)
    draw(args.picture, rows)


if __name__ == "__main__":
    main()
