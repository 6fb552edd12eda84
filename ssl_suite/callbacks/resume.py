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
            "numpy": (name, torch.from_numpy(np.asarray(words).astype(np.int64)), position, has_gauss, cached),
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

    Lightning saves neither: a resumed run starts its epoch at the first batch again and draws other numbers. The
    position is one monotone count of batches, put back before the loaders are built: they read ahead as soon as the
    schedule asks for the number of steps. The generators are put back at the first batch, because building iterators
    draws from them. Loggers get the figures of a checkpoint's last step after it was written, so a kill in between
    would lose them: they are kept too, and logged on resume.

    Attributes:
        position: batches this process has begun in the whole run.
        first_step: optimizer step at which this start of the run began.
        metrics: training figures of the last step before it.
    """

    def __init__(self) -> None:
        self.position = 0
        self.first_step = 0
        self.metrics: dict[str, float] = {}
        self._pending: dict[str, Any] | None = None

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._seek(trainer)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        trainer.ckpt_path = None  # loaded by now; Lightning would keep that file for ever, beside the newest

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any,
                             batch_idx: int) -> None:
        if self._pending is not None:
            set_rng_state(self._pending)
            self._pending = None
            if self.first_step % trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
                for logger in trainer.loggers:
                    logger.log_metrics(self.metrics, step=self.first_step - 1)

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any,
                           batch_idx: int) -> None:
        self.position += 1
        self._seek(trainer)

    def _seek(self, trainer: L.Trainer) -> None:
        data: Any = getattr(trainer, "datamodule", None)
        if hasattr(data, "seek"):
            data.seek(self.position)

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        states: list[Any] = [rng_state()]
        if world_size() > 1:
            states = [None] * world_size()
            dist.all_gather_object(states, rng_state())
        metrics = {name: float(v) for name, v in trainer.callback_metrics.items() if name.startswith("train/")}
        checkpoint["resume"] = {"position": self.position, "rng": states, "metrics": metrics}

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        saved = checkpoint["resume"]
        if len(saved["rng"]) != trainer.world_size:
            raise ValueError(f"the run was started on {len(saved['rng'])} processes and cannot go on with "
                             f"{trainer.world_size}; set trainer.devices to match")
        self.position, self._pending = saved["position"], saved["rng"][trainer.global_rank]
        self.first_step, self.metrics = checkpoint["global_step"], saved["metrics"]
        self._seek(trainer)
