"""Nearest-neighbour accuracy while training."""

from __future__ import annotations

import lightning as L

from ssl_suite.evaluation import labelled_features
from ssl_suite.functional.probes import knn_accuracy
from ssl_suite.nn.sharding import is_sharded


class OnlineKNN(L.Callback):
    """Logs ``val/knn`` every few epochs: validation samples among training samples, by the current features.

    It is a companion of the loss curve, not a result: the reported figures are the offline probes at the end.

    Args:
        every: epochs between two looks.
        samples: training and validation samples used at most.
    """

    def __init__(self, every: int = 10, samples: int = 2000) -> None:
        self.every, self.samples = every, samples

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        data = getattr(trainer, "datamodule", None)
        due = (trainer.current_epoch + 1) % self.every == 0
        if not due or data is None or data.parts["train"][0].targets is None:
            return
        if not trainer.is_global_zero and not is_sharded(pl_module):  # a sharded forward takes all processes
            return
        if len(data.parts["val"][1]) == 0:
            return
        train, y = labelled_features(pl_module, data, "train", self.samples)
        val, val_y = labelled_features(pl_module, data, "val", self.samples)
        pl_module.log("val/knn", knn_accuracy(train, y, val, val_y), prog_bar=True, rank_zero_only=True)
