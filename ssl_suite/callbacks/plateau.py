"""Where one data set ends and the next begins: the checkpoint at the end of a plateau, and a start from it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L

from ssl_suite.config import ConfigError
from ssl_suite.io.checkpoints import take_over


class Plateau(L.Callback):
    """Keeps the state at the end of the plateau of `ssl_suite.optim.Infinite`, and begins with that of the data set before.

    Singh et al., "Beyond Cosine Decay", CoLLAs 2025, arXiv 2503.02844: a model is judged after annealing, and the next data set
    goes on from before it. The checkpoint holds weights, moments, the scaler of 16-bit training and the random generators; taken
    over are weights and moments. The official code takes over the weights alone, beside the moments of the annealed run.

    Args:
        path: file to write.
        start: file of the data set before; None starts afresh.
        share: share of the run at which the checkpoint is written; 1, the end, for schedules without a plateau.
    """

    def __init__(self, path: str, start: str | None = None, share: float = 1.0) -> None:
        if not 0.0 < share <= 1.0:
            raise ValueError(f"callbacks.plateau.share={share} must lie in (0, 1]")
        self.path, self.start, self.share = path, start, share
        self._before = 0

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self.start is None or trainer.ckpt_path is not None:  # a run that is taken up again goes on with its own state
            return
        try:
            take_over(pl_module, trainer.optimizers[0], Path(self.start))
        except (FileNotFoundError, RuntimeError, ValueError) as error:
            raise ConfigError(f"callbacks.plateau.start={self.start}: {error}") from error

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int) -> None:
        self._before = trainer.global_step

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any,
                           batch_idx: int) -> None:
        end = self.share * int(trainer.estimated_stepping_batches)
        if self._before < end <= trainer.global_step:
            trainer.save_checkpoint(self.path)
