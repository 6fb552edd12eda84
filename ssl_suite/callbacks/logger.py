"""``metrics.csv``: one row per logged step, kept when a run is taken up again."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities import rank_zero_only


class MetricsFile(Logger):
    """Logs scalars to ``metrics.csv`` in a run folder.

    Lightning's CSV logger deletes an existing file, so a resumed run would lose its past. This one reads it, drops the
    rows beyond the step it resumes at, and goes on. The file is brought up to date with every checkpoint.

    Args:
        folder: run folder.
        flush_every: rows kept in memory at most.
    """

    def __init__(self, folder: str, flush_every: int = 50) -> None:
        super().__init__()
        self.path, self.flush_every = Path(folder) / "metrics.csv", flush_every
        self.rows: list[dict[str, Any]] = []
        self._unwritten = 0
        self._started = False

    @property
    def name(self) -> str:
        return "metrics"

    @property
    def version(self) -> str:
        return ""

    @rank_zero_only
    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """Nothing: ``config.yaml`` holds them."""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        step = len(self.rows) if step is None else step
        if not self._started:
            self._resume(step)
        if self.rows and self.rows[-1]["step"] == step:
            self.rows[-1].update(metrics)
        else:
            self.rows.append({"step": step, **metrics})
        self._unwritten += 1
        if self._unwritten >= self.flush_every:
            self.save()

    def _resume(self, step: int) -> None:
        self._started = True
        if self.path.is_file():
            with self.path.open(newline="") as file:
                old = [{k: v for k, v in row.items() if v != ""} for row in csv.DictReader(file)]
            self.rows = [{**row, "step": int(row["step"])} for row in old if int(row["step"]) <= step]

    @rank_zero_only
    def after_save_checkpoint(self, checkpoint_callback: Any) -> None:
        """Write the file: a run resumed from this checkpoint logs none of these rows again."""
        self.save()

    @rank_zero_only
    def save(self) -> None:
        if not self.rows:
            return
        names = list(dict.fromkeys(name for row in self.rows for name in row))
        temporary = self.path.with_name(".metrics.csv.tmp")
        with temporary.open("w", newline="") as file:
            writer = csv.DictWriter(file, names)
            writer.writeheader()
            writer.writerows(self.rows)
        temporary.replace(self.path)
        self._unwritten = 0

    @rank_zero_only
    def finalize(self, status: str) -> None:
        self.save()
