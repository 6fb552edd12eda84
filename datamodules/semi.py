"""Labelled and unlabelled batches side by side."""

from __future__ import annotations

from typing import Any

from lightning.pytorch.utilities import CombinedLoader
from torch.utils.data import DataLoader


def semi_loader(labeled: DataLoader[Any], unlabeled: DataLoader[Any]) -> CombinedLoader:
    """Batches ``{"labeled": Batch, "unlabeled": Batch}``; both loaders must have the same number of batches.

    Raises:
        ValueError: the loaders differ in length, so that one of them would be cut or restarted silently.
    """
    if len(labeled) != len(unlabeled):
        raise ValueError(f"{len(labeled)} labelled but {len(unlabeled)} unlabelled batches per epoch")
    return CombinedLoader({"labeled": labeled, "unlabeled": unlabeled}, mode="min_size")
