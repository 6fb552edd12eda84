"""Self-training for masks in stages, and the redesign with FixMatch inside the student's stage (arXiv 2401.07278).

    python scripts/self_training_masks.py wbc_masks --data wbc_zheng1.npz                       # 4, 10 and 50 labels, seeds 0 to 2
    python scripts/self_training_masks.py wbc_masks --data wbc_zheng1.npz --labels 4 --seeds 0 --rows supervised st st_fixmatch

Rows, each a run of train.py on as many steps:

``supervised``    the teacher: labelled pictures alone
``fixmatch``      labelled pictures and consistency, no pseudo-masks
``st``            a fresh student on labelled pictures and on the teacher's masks of all others (no threshold), in strong views
``st_fixmatch``   the same student with the consistency switched on: the redesign
``st_plus_plus``  first a student of the half whose masks changed least between the teacher's checkpoints, which guesses the other
                  half anew; then a student of all (ST++, CVPR 2022, arXiv 2106.05095)
``all``           the teacher with every label: the ceiling

A teacher guesses once, by the mean over five sizes and both mirror images, and writes ``pseudo_masks.npz`` (index, target,
confidence, kept). Every student starts from fresh weights, by another seed than its teacher's. Cells are finished when their
summary.json exists, so the same command takes a stopped table up.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from ssl_suite.config import ConfigError
from ssl_suite.functional.segmentation import agreement, averaged_probs
from ssl_suite.io.checkpoints import AtomicCheckpointIO, whole_file
from ssl_suite.programs import guarded, parser, write_rows
from ssl_suite.run import Run, build_data, load_run

ROOT = Path(__file__).resolve().parents[1]
ROWS = ("supervised", "fixmatch", "st", "st_fixmatch", "st_plus_plus", "all")
Guess = dict[str, np.ndarray]


def train(folder: Path, given: list[str]) -> Path:
    """Run train.py unless it has run; ConfigError with the end of its log where it fails."""
    if not (folder / "summary.json").is_file():
        folder.mkdir(parents=True, exist_ok=True)
        environment = {**os.environ, "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
        with (folder / "log.txt").open("w") as log:
            done = subprocess.run([sys.executable, str(ROOT / "train.py"), *given, f"hydra.run.dir={folder}"], cwd=ROOT,
                                  env=environment, stdout=log, stderr=subprocess.STDOUT)
        if done.returncode:
            raise ConfigError(f"{folder} ended with code {done.returncode}: {(folder / 'log.txt').read_text()[-600:]}")
    return folder


@torch.no_grad()
def guesses(run: Run, data: Any, index: np.ndarray) -> Guess:
    """Masks of training pictures by a trained method: index (M,), target (M, H, W) uint8, confidence (M,), the mean over pixels."""
    method: Any = run.method.eval()
    targets: list[torch.Tensor] = []
    confidences: list[torch.Tensor] = []
    for batch in data.clean_loader("train", index, shard=False):
        probs = averaged_probs(lambda x: method.head(method.backbone.maps(x), x), method.views(batch, "clean")[0])
        confidence, target = probs.max(1)
        targets.append(target.to(torch.uint8))
        confidences.append(confidence.mean((1, 2)))
    return {"index": index, "target": torch.cat(targets).numpy(), "confidence": torch.cat(confidences).numpy(),
            "kept": np.ones(len(index), bool)}


@torch.no_grad()
def reliability(run: Run, data: Any, index: np.ndarray) -> np.ndarray:
    """How little the masks of a run changed while it learnt: mean agreement of its checkpoints with the last, (M,)."""
    files = sorted((run.folder / "checkpoints").glob("*.ckpt"))
    if len(files) < 2:
        raise ConfigError(f"{run.folder} kept {len(files)} checkpoints; stability needs two or more: "
                          "callbacks.checkpoint.save_top_k=-1 callbacks.checkpoint.every_n_epochs=10")
    masks = []
    for file in files:
        run.method.load_state_dict(AtomicCheckpointIO().load_checkpoint(file)["state_dict"])
        batches = data.clean_loader("train", index, shard=False)
        masks.append(torch.cat([run.method.logits(batch).argmax(1) for batch in batches]))
    earlier = [agreement(mask, masks[-1], data.spec.num_classes) for mask in masks[:-1]]
    return torch.stack(earlier).mean(0).numpy()


def unlabelled(run: Run) -> tuple[Any, np.ndarray]:
    """The data of a run, and its training pictures without a label."""
    data = build_data({**run.config, "data": {**run.config["data"], "pseudo_masks": None}}, run.method.tags)
    return data, np.setdiff1d(data.parts["train"][1], data.labeled)


def guess(teacher: Path, file: Path, share: float = 1.0, base: Path | None = None) -> Path:
    """Write what a run guesses of the unlabelled pictures, unless it is written.

    Args:
        teacher: run folder.
        file: where to.
        share: share that is kept, the stablest first.
        base: guesses of an earlier teacher, whose kept ones stay.
    """
    if not file.is_file():
        run = load_run(teacher)
        data, index = unlabelled(run)
        made = guesses(run, data, index)
        if base is not None:
            old = dict(np.load(base))
            made["target"][old["kept"]] = old["target"][old["kept"]]
        if share < 1.0:
            order = np.argsort(-reliability(run, data, index), kind="stable")
            made["kept"] = np.isin(np.arange(len(index)), order[: round(share * len(index))])
        with whole_file(file) as written:
            np.savez(written, **made)  # type: ignore[arg-type]
    return file


def cell(row: str, folder: Path, common: list[str], labels: int, seed: int) -> Path:
    """The run folder of a row, after all stages that it needs."""
    student = ["model=fixmatch_segmentation", *common, f"data.labels={labels}", f"data.seed={seed}"]
    keep = ["callbacks.checkpoint.save_top_k=-1", "callbacks.checkpoint.every_n_epochs=10"]

    def stage(name: str, number: int, pseudo: Path | None, *given: str) -> Path:
        masks = [] if pseudo is None else [f"data.pseudo_masks={pseudo}"]
        return train(folder / name, [*student, *masks, *given, f"seed={seed + 1000 * number}"])

    if row == "all":
        return train(folder / row, ["model=segmentation", *common, "data.labels=null", f"seed={seed}"])
    if row == "fixmatch":
        return stage(row, 0, None)
    teacher = train(folder / "supervised", ["model=segmentation", *common, f"data.labels={labels}", *keep, f"seed={seed}"])
    if row == "supervised":
        return teacher
    if row == "st_plus_plus":
        reliable = guess(teacher, folder / "reliable_masks.npz", 0.5)
        middle = stage("st_reliable", 1, reliable, "model.lambda_u=0")
        return stage(row, 2, guess(middle, folder / "mixed_masks.npz", base=reliable), "model.lambda_u=0")
    masks = guess(teacher, folder / "pseudo_masks.npz")
    return stage(row, 1, masks, f"model.lambda_u={0.0 if row == 'st' else 1.0}")


def show(records: list[dict[str, Any]]) -> None:
    """Print mean and spread of the mIoU over the seeds."""
    table = Table("", *(f"{n} labels" for n in dict.fromkeys(r["labels"] for r in records)), title="test mIoU")
    for row in dict.fromkeys(r["row"] for r in records):
        cells = []
        for n in dict.fromkeys(r["labels"] for r in records):
            values = [r["miou"] for r in records if (r["row"], r["labels"]) == (row, n)]
            spread = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
            cells.append(f"{statistics.mean(values):.3f}{spread}" if values else "")
        table.add_row(row, *cells)
    Console().print(table)


def main() -> None:
    """Entry point."""
    arguments = parser(__doc__ or "")
    arguments.add_argument("experiment", help="an experiment config of data with masks")
    arguments.add_argument("--data", required=True, help="data.path")
    arguments.add_argument("--labels", type=int, nargs="*", default=[4, 10, 50], help="labelled pictures (default: 4 10 50)")
    arguments.add_argument("--rows", nargs="*", default=ROWS, choices=ROWS)
    arguments.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    arguments.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="overrides for every run")
    arguments.add_argument("--runs", type=Path, default=ROOT / "runs" / "self_training_masks", help="folder of the runs")
    arguments.add_argument("--csv", type=Path, help="write every run's scores there")
    given = arguments.parse_args()
    common = [f"experiment={given.experiment}", f"data.path={Path(given.data).resolve()}", *given.set]
    records: list[dict[str, Any]] = []
    for labels in given.labels:
        for seed in given.seeds:
            for row in given.rows:
                run = cell(row, given.runs.resolve() / f"{labels if row != 'all' else 'all'}-{seed}", common, labels, seed)
                summary = json.loads((run / "summary.json").read_text())
                records.append({"row": row, "labels": labels, "seed": seed, "commit": summary["commit"],
                                "seconds": summary["wall_seconds"], **summary["scores"]})
    show(records)
    if given.csv:
        write_rows(given.csv, records)


if __name__ == "__main__":
    guarded(main)
