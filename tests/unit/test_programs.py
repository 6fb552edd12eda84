"""What the scripts share."""

from __future__ import annotations

from pathlib import Path

import pytest

from ssl_suite import programs


def test_a_run_is_started_taken_up_or_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[list[str]] = []
    monkeypatch.setattr(programs, "finished_run", lambda command, folder: started.append([Path(command[0]).name, *command[1:]]))
    assert programs.trained_run(tmp_path, ["model=byol"]) == tmp_path
    (tmp_path / "config.yaml").touch()
    programs.trained_run(tmp_path, ["model=byol"])
    (tmp_path / "summary.json").touch()
    programs.trained_run(tmp_path, ["model=byol"])
    first = ["train.py", "model=byol", f"hydra.run.dir={tmp_path}"]
    assert started == [first, [*first, f"resume={tmp_path}"]]
