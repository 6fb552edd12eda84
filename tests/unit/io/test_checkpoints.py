"""A checkpoint on disk is complete, verified and safe to open, or it is not there."""

from __future__ import annotations

import os
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ssl_suite.io import checkpoints
from ssl_suite.io.checkpoints import AtomicCheckpointIO, intact, newest_checkpoint, sync_folder, whole_file

IO = AtomicCheckpointIO()


@pytest.fixture
def good(tmp_path: Path) -> Path:
    """A run folder with one good checkpoint."""
    path = tmp_path / "checkpoints" / "step=0000001.ckpt"
    IO.save_checkpoint({"step": 1, "w": torch.arange(1000.0)}, path)
    return path


def files(path: Path) -> list[str]:
    return sorted(p.name for p in path.parent.iterdir())


def test_round_trip(good: Path) -> None:
    content = IO.load_checkpoint(good)
    assert content["step"] == 1
    assert torch.equal(content["w"], torch.arange(1000.0))
    assert files(good) == [good.name]
    IO.remove_checkpoint(good)
    assert files(good) == []


def half_then_fail(content: Any, file: Any) -> None:
    file.write(b"half")
    raise OSError(28, "No space left on device")


def damaged(content: Any, file: Any) -> None:
    torch.serialization._legacy_save(content, file, pickle, 2)


@pytest.mark.parametrize("save", [half_then_fail, damaged])
def test_failed_write_raises_and_keeps_the_old_file(save: Any, good: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = good.read_bytes()
    monkeypatch.setattr(checkpoints.torch, "save", save)
    with pytest.raises(OSError, match=r"space|read back"):
        IO.save_checkpoint({"step": 2}, good)
    assert good.read_bytes() == before
    assert files(good) == [good.name], "the temporary file was left"


@pytest.mark.parametrize("stop", [KeyboardInterrupt(), SystemExit(143), OSError(28, "No space left on device")])
def test_what_tears_a_checkpoint_is_raised_and_not_the_complaint_of_its_writer(stop: BaseException, good: Path,
                                                                              monkeypatch: pytest.MonkeyPatch) -> None:
    before = good.read_bytes()

    class Torn:
        def __init__(self, file: Any) -> None:
            self.file, self.left = file, 3

        def write(self, data: bytes) -> int:
            self.left -= 1
            if self.left == 0:
                raise stop
            return self.file.write(data)

        def flush(self) -> None: ...

    save = torch.save
    monkeypatch.setattr(checkpoints.torch, "save", lambda content, file: save(content, Torn(file)))
    with pytest.raises(type(stop)) as raised:
        IO.save_checkpoint({"step": 2, "w": torch.zeros(1000)}, good)
    assert raised.value is stop
    assert good.read_bytes() == before
    assert files(good) == [good.name]


def test_a_failure_of_the_save_itself_stays_what_it_is(good: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(content: Any, file: Any) -> None:
        raise RuntimeError("cannot write this tensor")

    monkeypatch.setattr(checkpoints.torch, "save", broken)
    with pytest.raises(RuntimeError, match="this tensor"):
        IO.save_checkpoint({}, good)
    try:
        raise ValueError("the loss is not finite")
    except ValueError:
        with pytest.raises(RuntimeError, match="this tensor"):
            IO.save_checkpoint({}, good)


def test_refused_permission_raises(good: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(PermissionError):
        IO.save_checkpoint({"step": 2}, good)


class Disk:
    """What a power loss may leave of a file: bytes count once they are synced, a rename may count and surely does after a sync.

    Attributes:
        left: after each operation, every content that the file may then have; b"" stands for one that was not synced.
    """

    def __init__(self, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.target, self.left = target, [[target.read_bytes()]]
        self.nodes, self.synced = [target.stat().st_ino], {target.stat().st_ino: target.read_bytes()}
        opened, fsync, replace = Path.open, os.fsync, Path.replace

        def open_(path: Path, mode: str = "r", **kwargs: Any) -> Any:
            file = opened(path, mode, **kwargs)
            if mode == "wb":
                self.note(os.fstat(file.fileno()).st_ino, b"")
            return file

        def sync(handle: int) -> None:
            fsync(handle)
            place = Path(f"/proc/self/fd/{handle}").resolve()
            if place.is_dir():
                self.nodes = self.nodes[-1:]
            self.note(place.stat().st_ino, b"" if place.is_dir() else place.read_bytes())

        def rename(source: Path, target: Path) -> None:
            assert source.parent == target.parent, "a rename across folders can be a copy"
            self.nodes.append(source.stat().st_ino)
            replace(source, target)
            self.note(self.nodes[-1], self.synced[self.nodes[-1]])

        monkeypatch.setattr(Path, "open", open_)
        monkeypatch.setattr(Path, "replace", rename)
        monkeypatch.setattr(checkpoints.os, "fsync", sync)

    def note(self, node: int, content: bytes) -> None:
        self.synced[node] = content
        self.left.append([self.synced[node] for node in self.nodes])


@contextmanager
def writer_without(step: str, target: Path) -> Iterator[Any]:
    """A writer like ours that leaves out a step."""
    temporary = target if step == "rename" else target.with_name(".tmp")
    with temporary.open("wb") as file:
        yield file
        file.flush()
        if step != "sync file":
            os.fsync(file.fileno())
    if step != "rename":
        temporary.replace(target)
    if step != "sync folder":
        sync_folder(target.parent)


def after_power_loss(good: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[set[str], set[str]]:
    """What may be left of a checkpoint that is written anew: at any time, and once it is written."""
    old, disk = good.read_bytes(), Disk(good, monkeypatch)
    IO.save_checkpoint({"step": 2}, good)
    names = {old: "old", good.read_bytes(): "new", b"": "nothing"}
    return {names[content] for contents in disk.left for content in contents}, {names[content] for content in disk.left[-1]}


def test_a_power_loss_leaves_the_old_or_the_new(good: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert after_power_loss(good, monkeypatch) == ({"old", "new"}, {"new"})


@pytest.mark.parametrize(("step", "at_any_time", "at_the_end"), [
    ("none", {"old", "new"}, {"new"}), ("rename", {"old", "nothing", "new"}, {"new"}),
    ("sync file", {"old", "nothing"}, {"nothing"}), ("sync folder", {"old", "new"}, {"old", "new"})])
def test_control_without_a_step_of_it_both_or_the_new_are_lost(step: str, at_any_time: set[str], at_the_end: set[str], good: Path,
                                                               monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoints, "whole_file", partial(writer_without, step))
    assert after_power_loss(good, monkeypatch) == (at_any_time, at_the_end)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def flip(path: Path) -> None:
    """One bit inside a weight, which torch.load would not notice."""
    content = bytearray(path.read_bytes())
    place = bytes(content).index(torch.arange(1000.0).numpy().tobytes()[:64]) + 32
    content[place] ^= 1
    path.write_bytes(content)


def empty(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize("damage", [truncate, flip, empty])
def test_damage_is_seen_and_passed_over(damage: Any, good: Path) -> None:
    newer = good.with_name("step=0000002.ckpt")
    IO.save_checkpoint({"step": 2, "w": torch.arange(1000.0)}, newer)
    run = good.parents[1]
    assert newest_checkpoint(run) == newer
    damage(newer)
    assert not intact(newer)
    with pytest.warns(UserWarning, match="step=0000002.ckpt is damaged"):
        assert newest_checkpoint(run) == good
    damage(good)
    with pytest.warns(UserWarning, match="is damaged"), pytest.raises(FileNotFoundError, match="2 files looked at"):
        newest_checkpoint(run)


def test_control_torch_does_not_see_a_flipped_bit(good: Path) -> None:
    flip(good)
    assert not torch.equal(torch.load(good, weights_only=True)["w"], torch.arange(1000.0))


def test_half_written_files_are_not_offered(good: Path) -> None:
    good.with_name(".step=0000009.ckpt.tmp").write_bytes(good.read_bytes())
    assert newest_checkpoint(good.parents[1]) == good


class Hostile:
    """Touches a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("weights_only", [True, False, None])
def test_hostile_checkpoint_is_not_executed(weights_only: bool | None, tmp_path: Path) -> None:
    torch.save({"w": Hostile(tmp_path / "touched")}, tmp_path / "hostile.ckpt")
    with pytest.raises(pickle.UnpicklingError):
        IO.load_checkpoint(tmp_path / "hostile.ckpt", weights_only=weights_only)
    assert not (tmp_path / "touched").exists()


def test_control_elsewhere_a_hostile_checkpoint_is_executed(tmp_path: Path) -> None:
    torch.save({"w": Hostile(tmp_path / "touched")}, tmp_path / "hostile.ckpt")
    torch.load(tmp_path / "hostile.ckpt", weights_only=False)
    assert (tmp_path / "touched").exists()


def killed_half_way(file: Any, **arrays: Any) -> None:
    """What a writer does that dies between two arrays."""
    file.write(b"half")
    raise KeyboardInterrupt


def test_arrays_are_whole_or_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "split.npz"
    with whole_file(path) as file:
        np.savez_compressed(file, train=np.arange(5))
    monkeypatch.setattr(np, "savez_compressed", killed_half_way)
    with pytest.raises(KeyboardInterrupt), whole_file(path) as file:
        np.savez_compressed(file, train=np.arange(9))
    assert np.array_equal(np.load(path)["train"], np.arange(5))
    assert files(path) == ["split.npz"]


def test_control_without_it_half_a_file_is_left(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), (tmp_path / "split.npz").open("wb") as file:
        killed_half_way(file)
    assert not intact(tmp_path / "split.npz")
