"""Self-training for masks in stages, and the redesign with FixMatch inside the student's stage (arXiv 2401.07278).

    python scripts/self_training_masks.py wbc_masks --data wbc_zheng1.npz                       # 4, 10 and 50 labels, seeds 0 to 2
    python scripts/self_training_masks.py wbc_masks --data wbc_zheng1.npz --labels 4 --seeds 0 --rows supervised st st_fixmatch

Rows, each a run of train.py on as many steps:

``supervised``    the teacher: labelled pictures alone
``fixmatch``      labelled pictures and consistency, no pseudo-masks
``st``            a fresh student on labelled pictures and on the teacher's masks of all others (no threshold), in strong views
``st_fixmatch``   the same student with the consistency switched on: the redesign
``st_fixmatch_teacher``, ``st_fixmatch_both``    the teacher is the run of ``fixmatch``; its student without and with consistency
``st_plus_plus``  first a student of the half whose masks changed least between the teacher's checkpoints, which guesses the other
                  half anew; then a student of all (ST++, CVPR 2022, arXiv 2106.05095)
``st_plus_plus_fixmatch``   the same with consistency in the last student
``all``           the teacher with every label: the ceiling

A teacher guesses once, by the mean over five sizes and both mirror images, and writes ``pseudo_masks.npz`` (index, target,
confidence, kept) and, beside it, ``pseudo_masks_report.json``. Every student starts from fresh weights, by another seed than its
teacher's. The same command takes a stopped table up: a run is finished when its summary.json exists, and one that was killed in the
middle goes on. Rows, labels and seeds may be added in the same folder; other overrides need another ``--runs``.
"""

from __future__ import annotations

import signal
import statistics
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from ssl_suite.functional.segmentation import VOID, agreement, averaged_probs
from ssl_suite.io.checkpoints import whole_file
from ssl_suite.programs import claimed, guarded, parser, trained_run, write_rows
from ssl_suite.rounds import each_checkpoint, pool, write_json
from ssl_suite.run import Run, build_data, load_run
from ssl_suite.summary import read_summary

ROOT = Path(__file__).resolve().parents[1]
ROWS = ("supervised", "fixmatch", "st", "st_fixmatch", "st_fixmatch_teacher", "st_fixmatch_both", "st_plus_plus",
        "st_plus_plus_fixmatch", "all")
Guess = dict[str, np.ndarray]


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
    *masks, last = each_checkpoint(run, lambda: torch.cat([run.method.logits(batch).argmax(1) for batch in
                                                           data.clean_loader("train", index, shard=False)]))
    return torch.stack([agreement(mask, last, data.spec.num_classes) for mask in masks]).mean(0).numpy()


def unlabelled(run: Run) -> tuple[Any, np.ndarray]:
    """The data of a run, and its training pictures without a label."""
    data = build_data({**run.config, "data": {**run.config["data"], "pseudo_masks": None}}, run.method.tags)
    return data, pool(data, "unlabelled")


def guess(teacher: Path, file: Path, share: float = 1.0, base: Path | None = None) -> Path:
    """Write what a run guesses of the unlabelled pictures, and a report of it, unless they are written.

    Args:
        teacher: run folder.
        file: where to.
        share: share that is kept, the stablest first.
        base: guesses of an earlier teacher, whose kept ones stay.
    """
    report = file.with_name(f"{file.stem}_report.json")
    if not report.is_file():
        run = load_run(teacher)
        data, index = unlabelled(run)
        made, stable = guesses(run, data, index), None
        if base is not None:
            old = dict(np.load(base))
            made["target"][old["kept"]] = old["target"][old["kept"]]
        if share < 1.0:
            stable = reliability(run, data, index)
            made["kept"] = np.isin(np.arange(len(index)), np.argsort(-stable, kind="stable")[: round(share * len(index))])
        with whole_file(file) as written:
            np.savez(written, **made)  # type: ignore[arg-type]
        write_json(report, {"teacher": teacher.name, **said(made, stable, data)})  # the last: with it the guesses are complete
    return file


def said(made: Guess, stable: np.ndarray | None, data: Any) -> dict[str, Any]:
    """What there is to say of guessed masks; true masks are read here alone, after all is decided.

    Args:
        made: the guesses.
        stable: how reliable each is, (M,); None where it is not known.
        data: the data they were made on, without pseudo-masks.

    Returns:
        How many pictures and how many of them are kept; of these the share of each class in the pixels, mean confidence and mean
        reliability; and the accuracy over pixels, of all and of the kept, None where no pixel has a true class.
    """
    kept, classes = made["kept"], data.spec.classes
    truth = torch.cat([batch["y"] for batch in data.clean_loader("train", made["index"], shard=False)]).numpy()
    shares = np.bincount(made["target"][kept].ravel(), minlength=len(classes)) / made["target"][kept].size

    def accuracy(rows: np.ndarray) -> float | None:
        right = (made["target"][rows] == truth[rows])[truth[rows] != VOID]
        return float(right.mean()) if right.size else None

    return {"pictures": len(kept), "kept": int(kept.sum()), "classes": dict(zip(classes, shares.tolist(), strict=True)),
            "mean_confidence": float(made["confidence"][kept].mean()),
            "mean_reliability": None if stable is None else float(stable[kept].mean()),
            "accuracy_pool": accuracy(np.ones_like(kept)), "accuracy_kept": accuracy(kept)}


def cell(row: str, folder: Path, common: list[str], labels: int, seed: int) -> Path:
    """The run folder of a row, after all stages that it needs."""
    student = ["model=fixmatch_segmentation", *common, f"data.labels={labels}", f"data.seed={seed}"]
    keep = ["callbacks.checkpoint.save_top_k=-1", "callbacks.checkpoint.every_n_epochs=10"]

    def stage(name: str, number: int, pseudo: Path | None, *given: str) -> Path:
        masks = [] if pseudo is None else [f"data.pseudo_masks={pseudo}"]
        return trained_run(folder / name, [*student, *masks, *given, f"seed={seed + 1000 * number}"])

    if row == "all":
        return trained_run(folder / row, ["model=segmentation", *common, "data.labels=null", f"seed={seed}"])
    if row in ("fixmatch", "st_fixmatch_teacher", "st_fixmatch_both"):
        teacher, file = stage("fixmatch", 0, None), folder / "fixmatch_masks.npz"
    else:
        plain = ["model=segmentation", *common, f"data.labels={labels}", *keep, f"seed={seed}"]
        teacher, file = trained_run(folder / "supervised", plain), folder / "pseudo_masks.npz"
    if row == teacher.name:
        return teacher
    number = 1
    if row.startswith("st_plus_plus"):
        reliable = guess(teacher, folder / "reliable_masks.npz", 0.5)
        middle = stage("st_reliable", 1, reliable, "model.lambda_u=0")
        number, masks = 2, guess(middle, folder / "mixed_masks.npz", base=reliable)
    else:
        masks = guess(teacher, file)
    weight = 1.0 if row in ("st_fixmatch", "st_fixmatch_both", "st_plus_plus_fixmatch") else 0.0
    return stage(row, number, masks, f"model.lambda_u={weight}")


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
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # ends the run at work too
    common = [f"experiment={given.experiment}", f"data.path={Path(given.data).resolve()}", *given.set]
    records: list[dict[str, Any]] = []
    for labels in given.labels:
        for seed in given.seeds:
            for row in given.rows:
                folder = given.runs.resolve() / f"{labels if row != 'all' else 'all'}-{seed}"
                with claimed(folder, {"overrides": common}):
                    run = cell(row, folder, common, labels, seed)
                summary = read_summary(run)
                records.append({"row": row, "labels": labels if row != "all" else "all", "seed": seed, "commit": summary["commit"],
                                "seconds": summary["wall_seconds"], **summary["scores"]})
    show(records)
    if given.csv:
        write_rows(given.csv, records)


if __name__ == "__main__":
    guarded(main)
