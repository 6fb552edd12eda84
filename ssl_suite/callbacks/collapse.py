"""Is the representation alive? Watches rank and spread of the features a method returns, and the rank of what it embeds."""

from __future__ import annotations

from typing import Any

import lightning as L
import torch
import torch.nn.functional as F
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn

from ssl_suite.callbacks.finite import features_of
from ssl_suite.functional.spectrum import rankme
from ssl_suite.nn.sharding import is_sharded

REMEDY = "lower optimizer.lr, raise data.batch_size, or check the method's anti-collapse term"


class CollapseMonitor(L.Callback):
    """Logs figures of the features each epoch, and warns when they are nearly constant or their embedding has lost its directions.

    ``collapse/std`` is the mean standard deviation of a channel of l2-normalised features times the root of their width: 1 when
    they fill the sphere, 0 when they are one point (SimSiam, arXiv 2011.10566, section 4.1). ``collapse/rankme`` is their effective
    rank. Of a joint embedding with a ``projector``, which takes the features a step returns, ``collapse/embedding_rankme`` is
    that of its output: it falls first, while the backbone's features still look well.

    Args:
        samples: features kept for the epoch's figures.
        threshold: value of ``std`` below which a warning is given.
        kept_rank: share of the features' rank that the embedding must keep.
    """

    def __init__(self, samples: int = 2048, threshold: float = 0.02, kept_rank: float = 0.3) -> None:
        self.samples, self.threshold, self.kept_rank = samples, threshold, kept_rank
        self._kept: list[Tensor] = []

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any,
                           batch_idx: int) -> None:
        features = features_of(outputs)
        if features is not None and sum(map(len, self._kept)) < self.samples:
            self._kept.append(features)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not self._kept:
            return
        h = torch.cat(self._kept).float()[: self.samples]
        self._kept.clear()
        std = F.normalize(h, dim=1).std(0).mean().cpu() * h.shape[1] ** 0.5
        figures = {"std": float(std), "rankme": rankme(h.cpu().numpy())}
        projector = getattr(pl_module, "projector", None)
        tags = getattr(pl_module, "tags", None)
        if projector is not None and tags is not None and tags.joint_embedding and not is_sharded(pl_module):
            figures["embedding_rankme"] = rankme(embedded(projector, h).cpu().numpy())
        pl_module.log_dict({f"collapse/{name}": value for name, value in figures.items()}, rank_zero_only=True)
        if std < self.threshold:
            rank_zero_warn(f"features have collapsed: their normalised spread is {std:.4f}; {REMEDY}")
        elif figures.get("embedding_rankme", float("inf")) < self.kept_rank * figures["rankme"]:
            rank_zero_warn(f"the embedding has collapsed: of {figures['rankme']:.1f} directions of the features it keeps "
                           f"{figures['embedding_rankme']:.1f}; {REMEDY}")


@torch.no_grad()
def embedded(projector: nn.Module, h: Tensor) -> Tensor:
    """Embeddings of features (N, D), by the running statistics of the projector's norms, which stay as they are."""
    training = projector.training
    projector.eval()
    try:
        return projector(h).float()
    finally:
        projector.train(training)
