"""Weight decay that changes along the run."""

from __future__ import annotations

import math
from typing import Any

import lightning as L


class WeightDecay(L.Callback):
    """Moves the weight decay of all groups that have one along half a cosine, from ``first`` to ``last`` (DINO, I-JEPA).

    It is a function of the step alone, so that a resumed run goes on as if it had not stopped.

    Args:
        first: decay at the first step, above 0.
        last: decay at the end.
    """

    def __init__(self, first: float = 0.04, last: float = 0.4) -> None:
        if first <= 0.0:
            raise ValueError(f"first must be above 0, got {first}: groups without decay are told by its being 0")
        self.first, self.last = first, last

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int) -> None:
        done = min(1.0, trainer.global_step / max(1, trainer.estimated_stepping_batches))
        decay = self.last + (self.first - self.last) * (1.0 + math.cos(math.pi * done)) / 2.0
        for optimizer in trainer.optimizers:
            for group in optimizer.param_groups:
                if group["weight_decay"]:
                    group["weight_decay"] = decay
