"""Checkpoints that are complete, verified and safe to open, or not there at all."""

from __future__ import annotations

import os
import sys
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import torch
from lightning.fabric.plugins.io.checkpoint_io import CheckpointIO
from lightning.pytorch.utilities import rank_zero_warn
from torch import nn


class AtomicCheckpointIO(CheckpointIO):
    """Writes to a temporary file beside the target, syncs, verifies, then renames; reads weights only.

    Lightning's writer goes through the system's temporary folder, where a rename can be a copy that a kill tears, and
    it swallows a refused permission. Here every failure raises, and the old file stays until the new one is proven.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(target) as file:
            handled = sys.exception()  # what a save during an exception is not to be mistaken for
            try:
                torch.save(checkpoint, file)
            except RuntimeError as error:
                tore = error.__context__
                if tore is None or tore is handled:
                    raise
                raise tore from None  # a signal, a full disk: torch's writer only complains of the torn archive

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = True) -> dict[str, Any]:
        return torch.load(path, map_location=map_location or "cpu", weights_only=True)

    def remove_checkpoint(self, path: Any) -> None:
        Path(path).unlink(missing_ok=True)


@contextmanager
def whole_file(target: Path) -> Iterator[IO[bytes]]:
    """A zip archive (what ``torch.save`` and ``np.savez`` write) that is complete, synced and verified, or not there.

    Raises:
        OSError: it could not be written, or does not read back; an old file stays.
    """
    temporary = target.with_name(f".{target.name}.tmp")  # what a kill leaves here is overwritten after the resume
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        if not intact(temporary):
            raise OSError(f"{temporary} does not read back as written; is the disk full or failing?")
        temporary.replace(target)
        sync_folder(target.parent)
    finally:
        temporary.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Make a rename in a folder survive a power loss."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def intact(path: Path) -> bool:
    """Whether a checkpoint's checksums hold (``torch.load`` does not look at them)."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.testzip() is None
    except (zipfile.BadZipFile, OSError):
        return False


def newest_checkpoint(run: Path) -> Path:
    """The newest undamaged checkpoint of a run folder; damaged ones are named and passed over.

    Raises:
        FileNotFoundError: the folder holds no usable checkpoint.
    """
    candidates = sorted((run / "checkpoints").glob("*.ckpt"), key=lambda p: p.stat().st_mtime_ns, reverse=True)
    for path in candidates:
        if intact(path):
            return path
        rank_zero_warn(f"{path} is damaged; trying an older checkpoint")
    raise FileNotFoundError(f"no usable checkpoint in {run / 'checkpoints'} ({len(candidates)} files looked at)")


def take_over(module: nn.Module, optimizer: torch.optim.Optimizer, path: Path) -> None:
    """Go on from the weights and the optimizer's moments of a checkpoint; rate, decay and the count of steps stay this run's.

    Raises:
        FileNotFoundError: there is no such file.
        RuntimeError: the checkpoint is of another module; the message names the tensors.
        ValueError: its optimizer has other groups or other parameters.
    """
    saved = AtomicCheckpointIO().load_checkpoint(path)
    module.load_state_dict(saved["state_dict"])
    old, new = saved["optimizer_states"][0], optimizer.state_dict()
    if [len(group["params"]) for group in old["param_groups"]] != [len(group["params"]) for group in new["param_groups"]]:
        raise ValueError(f"{path}: the optimizer there has other groups of parameters; take the optimizer of its run")
    optimizer.load_state_dict({**new, "state": old["state"]})
