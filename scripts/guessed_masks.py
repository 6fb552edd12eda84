"""How right the masks are that a run would have guessed of its unlabelled pictures, from checkpoint to checkpoint.

    python scripts/guessed_masks.py runs/tables/wbc_future_teacher/* --csv guessed_masks.csv

For runs on pictures with masks of which training saw a few (data.labels) and which kept their checkpoints
(callbacks.checkpoint.save_top_k=-1). What is judged is what the run's predictions come from: the teacher, where a method has
one. The hidden masks are read here, and nowhere in training. Prints the share of pixels that are right, on average over the first
half of training and at its end.
"""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table

from ssl_suite.functional.segmentation import VOID
from ssl_suite.programs import guarded, parser, write_rows
from ssl_suite.rounds import each_checkpoint, pool
from ssl_suite.run import build_data, load_run


@torch.no_grad()
def judged(folder: Path) -> list[dict[str, Any]]:
    """One record for each checkpoint of a run: run, progress in (0, 1], and accuracy over all pixels of its unlabelled pictures.

    Raises:
        ConfigError: the run kept fewer than two checkpoints.
    """
    run = load_run(folder)
    data = build_data(run.config, run.method.tags)
    index = pool(data, "unlabelled")

    def accuracy() -> float:
        right = pixels = 0
        for batch in data.clean_loader("train", index, shard=False):
            counts = batch["y"] != VOID
            right += int((run.method.logits(batch).argmax(1) == batch["y"])[counts].sum())
            pixels += int(counts.sum())
        return right / pixels

    found = each_checkpoint(run, accuracy)
    return [{"run": folder.name, "progress": (i + 1) / len(found), "accuracy": value} for i, value in enumerate(found)]


def main() -> None:
    """Entry point."""
    arguments = parser(__doc__ or "")
    arguments.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="run folders")
    arguments.add_argument("--csv", type=Path, help="write every checkpoint's accuracy there")
    given = arguments.parse_args()
    records = [record for folder in track(given.runs, "checkpoints") for record in judged(folder)]
    table = Table("", "first half", "end", title="pixels guessed right")
    for folder in given.runs:
        mine = [record["accuracy"] for record in records if record["run"] == folder.name]
        table.add_row(folder.name, f"{statistics.mean(mine[: len(mine) // 2]):.4f}", f"{mine[-1]:.4f}")
    Console().print(table)
    if given.csv:
        write_rows(given.csv, records)


if __name__ == "__main__":
    guarded(main)
