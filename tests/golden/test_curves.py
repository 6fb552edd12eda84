"""Loss curves that must not move: six steps of whole runs on the embedded digits, one JSON file each.

Where a change of the numbers is meant, write the curves anew and say why in the commit:

    SSL_SUITE_GOLDEN=write python -m pytest tests/golden
"""

from __future__ import annotations

import csv
import json
import os
from pathlib import Path

import pytest

from tests.runs import run

CURVES = sorted(Path(__file__).parent.glob("*.json"))


@pytest.mark.parametrize("path", CURVES, ids=lambda p: p.stem)
def test_curve(path: Path, tmp_path: Path) -> None:
    golden = json.loads(path.read_text())
    folder = run(tmp_path, *golden["overrides"], "evaluation.probes=false", "callbacks.pictures=null", "callbacks.knn=null",
                 "trainer.precision=32-true", "trainer.max_epochs=1", "trainer.limit_train_batches=6",
                 "trainer.limit_val_batches=0", "trainer.log_every_n_steps=1", quick=False)
    with (folder / "metrics.csv").open() as file:
        losses = [float(row["train/loss"]) for row in csv.DictReader(file) if row.get("train/loss")]
    if os.environ.get("SSL_SUITE_GOLDEN") == "write":
        path.write_text(json.dumps({**golden, "losses": losses}, indent=2) + "\n")
    assert len(losses) == 6
    assert losses == pytest.approx(golden["losses"], rel=1e-4, abs=1e-4)
    assert max(losses) - min(losses) > 1e-2, "the control: a curve that never moves tells nothing"
