"""Exact resume: a run that was killed goes on as if it had not been."""

from __future__ import annotations

import random
from typing import Any

import lightning as L
import numpy as np
import torch
import torch.distributed as dist

from ssl_suite.functional.distributed import world_size


def rng_state() -> dict[str, Any]:
    """State of every global random generator of this process, as numbers and tensors."""
    version, keys, gauss = random.getstate()
    name, words, position, has_gauss, cached = np.random.get_state(legacy=True)  # noqa: NPY002
    return {"python": (version, list(keys), gauss), "torch": torch.get_rng_state(),
            "numpy": (name, torch.from_numpy(words.astype(np.int64)), position, has_gauss, cached),
            "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []}


def set_rng_state(state: dict[str, Any]) -> None:
    """Restore what `rng_state` returned."""
    version, keys, gauss = state["python"]
    random.setstate((version, tuple(keys), gauss))
    torch.set_rng_state(state["torch"])
    name, words, position, has_gauss, cached = state["numpy"]
    np.random.set_state((name, words.numpy().astype(np.uint32), position, has_gauss, cached))  # noqa: NPY002
    if state["cuda"]:
        torch.cuda.set_rng_state_all(state["cuda"])


class ResumeState(L.Callback):
    """Keeps the position in the data and the random generators of every process in the checkpoint.

    Lightning saves neither: a resumed run starts its epoch at the first batch again and draws other numbers. The position is
    one monotone count of batches, put back before the loaders are built; the generators are put back at the first batch,
    because building iterators draws from them.
    """

    def __init__(self) -> None:
        self.position = 0
        self._pending: dict[str, Any] | None = None

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._seek(trainer)

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int) -> None:
        if self._pending is not None:
            set_rng_state(self._pending)
            self._pending = None

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any,
                           batch_idx: int) -> None:
        self.position += 1
        self._seek(trainer)

    def _seek(self, trainer: L.Trainer) -> None:
        data = getattr(trainer, "datamodule", None)
        if hasattr(data, "seek"):
            data.seek(self.position)

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        states: list[Any] = [rng_state()]
        if world_size() > 1:
            states = [None] * world_size()
            dist.all_gather_object(states, rng_state())
        checkpoint["resume"] = {"position": self.position, "rng": states}

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        saved = checkpoint["resume"]
        if len(saved["rng"]) != trainer.world_size:
            raise ValueError(f"the run was started on {len(saved['rng'])} processes and cannot go on with {trainer.world_size}; "
                             f"set trainer.devices to match")
        self.position, self._pending = saved["position"], saved["rng"][trainer.global_rank]
