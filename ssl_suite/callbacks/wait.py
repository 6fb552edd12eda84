"""How long training waits for its data."""

from __future__ import annotations

from time import perf_counter
from typing import Any

import lightning as L


class DataWait(L.Callback):
    """Logs ``train/data_wait``: the share of an epoch's training time, in [0, 1], that passed between two steps.

    There the host waits for the next batch; the copy to the device, which is only begun, and what loggers and other callbacks do
    between steps count as well. Validation does not, nor what happens between epochs. The times are those of the host, and
    nothing waits for the device to take them: where the device is the slower part, the host waits for it within a step.
    """

    def __init__(self) -> None:
        self._last = self._waited = self._whole = 0.0

    def _passed(self) -> float:
        """Seconds since the last call, which go into the whole."""
        now = perf_counter()
        seconds, self._last = now - self._last, now
        self._whole += seconds
        return seconds

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._last, self._waited, self._whole = perf_counter(), 0.0, 0.0

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int) -> None:
        self._waited += self._passed()

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any,
                           batch_idx: int) -> None:
        self._passed()

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._last = perf_counter()

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self._whole:
            pl_module.log("train/data_wait", self._waited / self._whole, rank_zero_only=True)
