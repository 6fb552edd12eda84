"""A run on a streamed set that is killed within an epoch ends with the same bits as one that was left alone."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
import torch
from torchvision.io import write_png

from ssl_suite.data.prepare import prepare_streamed
from tests.faults.runs import TINY, checkpoints, final_state, identical, kill_at, start, step_of, train

pytestmark = pytest.mark.faults

PER_EPOCH, LAST = 8, 24


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A set of 64 training pictures in some ten chunks, and the folder of an uninterrupted run on it."""
    pytest.importorskip("litdata", reason="streamed sets need the extra 'streaming'")
    folder, generator = tmp_path_factory.mktemp("streamed"), torch.Generator().manual_seed(0)
    for i in range(80):
        place = folder / "pictures" / ("train" if i < 64 else "test") / "ab"[i % 2]
        place.mkdir(parents=True, exist_ok=True)
        write_png(torch.randint(0, 256, (3, 12, 12), dtype=torch.uint8, generator=generator), str(place / f"{i}.png"))
    prepare_streamed(folder / "pictures", folder / "set", chunk_bytes=4000)
    (folder / "whole").mkdir()
    train(folder / "whole", *overrides(folder / "set", 0))
    return folder / "set", folder / "whole"


def overrides(path: Path, workers: int) -> tuple[str, ...]:
    return ("model=simclr", "data=streamed_images", f"data.path={path}", "data.size=12", "data.batch_size=8",
            "data.val_fraction=0", f"data.num_workers={workers}", *TINY[1:])


@pytest.mark.parametrize(("workers", "step"), [(0, 4), (2, 12)])
def test_killed_run_ends_the_same(workers: int, step: int, made: tuple[Path, Path], tmp_path: Path) -> None:
    path, whole = made
    code, _ = kill_at(start(tmp_path, *overrides(path, workers)), tmp_path, step)
    assert code == -signal.SIGKILL
    reached = step_of(checkpoints(tmp_path)[-1])
    assert reached < LAST
    assert reached % PER_EPOCH, "killed between epochs"
    train(tmp_path, *overrides(path, workers), "resume=auto")
    assert identical(final_state(tmp_path), final_state(whole))
