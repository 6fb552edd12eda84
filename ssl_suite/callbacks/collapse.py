"""Is the representation alive? Watches rank and spread of the features a method returns."""

from __future__ import annotations

from typing import Any

import lightning as L
import torch
import torch.nn.functional as F
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from ssl_suite.callbacks.finite import features_of
from ssl_suite.functional.spectrum import rankme


class CollapseMonitor(L.Callback):
    """Logs ``collapse/rankme`` and ``collapse/std`` each epoch and warns when features are nearly constant.

    ``std`` is the mean standard deviation of a channel of l2-normalised features times the root of their width: 1 when they
    fill the sphere, 0 when they are one point (SimSiam, arXiv 2011.10566, section 4.1).

    Args:
        samples: features kept for the epoch's figures.
        threshold: value of ``std`` below which a warning is given.
    """

    def __init__(self, samples: int = 2048, threshold: float = 0.02) -> None:
        self.samples, self.threshold = samples, threshold
        self._kept: list[Tensor] = []

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any,
                           batch_idx: int) -> None:
        features = features_of(outputs)
        if features is not None and sum(map(len, self._kept)) < self.samples:
            self._kept.append(features)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not self._kept:
            return
        features = torch.cat(self._kept).float().cpu()[: self.samples]
        self._kept.clear()
        std = F.normalize(features, dim=1).std(0).mean() * features.shape[1] ** 0.5
        pl_module.log_dict({"collapse/std": std, "collapse/rankme": rankme(features.numpy())}, rank_zero_only=True)
        if std < self.threshold:
            rank_zero_warn(f"features have collapsed: their normalised spread is {std:.4f}; "
                           "lower optimizer.lr, raise data.batch_size, or check the method's anti-collapse term")
