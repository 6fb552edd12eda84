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
    """Logs figures of the features each epoch, and warns when they are nearly constant or their embedding has died.

    ``collapse/std`` is the mean standard deviation of a channel of l2-normalised features times the root of their width: 1 when
    they fill the sphere, 0 when they are one point (SimSiam, arXiv 2011.10566, section 4.1). ``collapse/rankme`` is their effective
    rank. A joint embedding dies first, while the backbone's features still look well, and in one of two ways: it loses directions
    (SimSiam without the stopped gradient), or shrinks in all of them (VICReg without the variance term). So for methods with a
    ``projector``, which takes the features that the step returns, ``collapse/embedding_rankme`` is the rank of its output, and
    ``collapse/embedding_std`` the mean standard deviation of its channels over that of the features'. Methods for masks are left
    out: their maps speak of pixels, and the mean of one hardly differs from picture to picture.

    Args:
        samples: features kept for the epoch's figures.
        threshold: value of ``std`` below which a warning is given.
        kept_rank: share of the features' rank that the embedding must keep.
        kept_std: the least ``embedding_std``.
    """

    def __init__(self, samples: int = 2048, threshold: float = 0.02, kept_rank: float = 0.35, kept_std: float = 0.1) -> None:
        self.samples, self.threshold, self.kept_rank, self.kept_std = samples, threshold, kept_rank, kept_std
        self._kept: list[Tensor] = []

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any,
                           batch_idx: int) -> None:
        features, tags = features_of(outputs), getattr(pl_module, "tags", None)
        if features is not None and (tags is None or tags.target != "mask") and sum(map(len, self._kept)) < self.samples:
            self._kept.append(features)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not self._kept:
            return
        h = torch.cat(self._kept).float()[: self.samples]
        self._kept.clear()
        figures = {"std": float(F.normalize(h, dim=1).std(0).mean()) * h.shape[1] ** 0.5, "rankme": rankme(h.cpu().numpy())}
        tags, projector = getattr(pl_module, "tags", None), getattr(pl_module, "projector", None)
        if tags is not None and tags.joint_embedding and projector is not None and not is_sharded(pl_module):
            z = embedded(projector, h)
            figures["embedding_std"] = float(z.std(0).mean() / h.std(0).mean().clamp_min(1e-12))
            figures["embedding_rankme"] = rankme(z.cpu().numpy())
        pl_module.log_dict({f"collapse/{name}": value for name, value in figures.items()}, rank_zero_only=True)
        self.warn(**figures)

    def warn(self, std: float, rankme: float, embedding_std: float = 1.0, embedding_rankme: float = float("inf")) -> None:
        """Say what has died, if anything has."""
        if std < self.threshold:
            rank_zero_warn(f"features have collapsed: their normalised spread is {std:.4f}; {REMEDY}")
        elif embedding_std < self.kept_std:
            rank_zero_warn(f"the embedding has collapsed: it spreads {embedding_std:.3f} times as far as the features; {REMEDY}")
        elif embedding_rankme < self.kept_rank * rankme:
            rank_zero_warn(f"the embedding has collapsed: of the features' {rankme:.1f} directions it keeps "
                           f"{embedding_rankme:.1f}; {REMEDY}")


@torch.no_grad()
def embedded(projector: nn.Module, h: Tensor) -> Tensor:
    """Embeddings of features (N, D), by the running statistics of the projector's norms, which stay as they are."""
    training = projector.training
    projector.eval()
    try:
        return projector(h).float()
    finally:
        projector.train(training)
