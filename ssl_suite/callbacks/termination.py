"""A run that is asked to end saves where it stands and says that it was not done."""

from __future__ import annotations

import signal
import threading
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities.exceptions import SIGTERMException


class Termination(L.Callback):
    """On SIGTERM: finish the optimizer step, save a checkpoint, raise Lightning's ``SIGTERMException``.

    `ssl_suite.cli.program` turns that into code 143, what a scheduler expects of a program that was terminated; Lightning 2.6
    alone ends with 0 and saves nothing. Its handler is put aside while training
    runs: with several processes it starts a collective from within the signal. Here the processes ask each other at every
    ``every_n_steps``-th step whether one of them was asked to end, and so all save the same step.

    Args:
        every_n_steps: optimizer steps between two questions where there are several processes; one process knows at once.
    """

    def __init__(self, every_n_steps: int = 10) -> None:
        self.every_n_steps = every_n_steps
        self.asked = False

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, self._note)

    def _note(self, number: int, frame: Any) -> None:
        self.asked = True

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any,
                           batch_idx: int) -> None:
        stepped = trainer.is_last_batch or (batch_idx + 1) % trainer.accumulate_grad_batches == 0
        if not stepped or (trainer.world_size > 1 and trainer.global_step % self.every_n_steps):
            return
        if trainer.strategy.reduce_boolean_decision(self.asked, all=False):
            keeper = trainer.checkpoint_callback
            if isinstance(keeper, ModelCheckpoint):
                keep(trainer, keeper)
            raise SIGTERMException


def keep(trainer: L.Trainer, keeper: ModelCheckpoint) -> None:
    """Save a checkpoint now; where the newest are kept it counts as one of them, so that they do not pile up."""
    if keeper.monitor == "step" and keeper.save_top_k:
        keeper._save_topk_checkpoint(trainer, keeper._monitor_candidates(trainer))
    else:
        reached: dict[str, Any] = {"epoch": trainer.current_epoch, "step": trainer.global_step}
        trainer.save_checkpoint(keeper.format_checkpoint_name(reached))
