"""Does self-training learn from what it has no labels for, and are its guesses still about more than one class?"""

from __future__ import annotations

from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from ssl_suite.nn.sharding import is_sharded


class PseudoLabelMonitor(L.Callback):
    """Warns when no guess is believed for long, and when all guesses are of one class; for methods with unlabelled batches.

    A run without believed guesses is supervised training at a multiple of its price. A model whose guesses are all of one class
    teaches itself nothing else any more: the usual end of a teacher that has gone constant. Both are looked at when an epoch ends,
    so that no step waits for the device. The class is asked of `Method.logits`, thus of the averaged weights where there are some,
    on the unlabelled samples of the last batch.

    Args:
        patience: steps in a row without a believed guess, ``mask_ratio`` 0, before the warning, and between two of them. The count
            is kept in checkpoints.
    """

    def __init__(self, patience: int = 100) -> None:
        self.patience = patience
        self._silent: Tensor | None = None
        self._last: Any = None

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any,
                           batch_idx: int) -> None:
        self._last = batch.get("unlabeled")
        believed = outputs["logs"].get("mask_ratio")
        if believed is not None:
            silent = torch.zeros_like(believed, dtype=torch.int64) if self._silent is None else self._silent.to(believed.device)
            self._silent = torch.where(believed > 0.0, 0, silent + 1)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self._silent is not None and (steps := int(self._silent)) >= self.patience:
            self._silent.zero_()
            rank_zero_warn(f"no pseudo-label was believed for the last {steps} steps, so only the labelled samples teach; lower "
                           "the policy's threshold (model.policy.threshold, policy=freematch), or start from pre-trained weights")
        if self._last is None or is_sharded(pl_module):
            return
        guesses = guessed(pl_module, self._last).flatten()
        if len(guesses) > 1 and bool((guesses == guesses[0]).all()):
            rank_zero_warn(f"all {len(guesses)} guesses on the last unlabelled batch are of class {int(guesses[0])}: the model "
                           "that teaches has gone constant; lower optimizer.lr or the unlabelled weight, or check the labels")

    def state_dict(self) -> dict[str, Any]:
        return {"silent": self._silent}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._silent = state_dict["silent"]


@torch.no_grad()
def guessed(method: Any, batch: Any) -> Tensor:
    """Classes that a method gives to the samples of a batch, by the statistics of evaluation."""
    training = method.training
    method.eval()
    try:
        return method.logits(batch).argmax(1)
    finally:
        method.train(training)
