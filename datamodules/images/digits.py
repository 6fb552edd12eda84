"""Handwritten digits that come with scikit-learn: 1797 real pictures, no download."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from sklearn.datasets import load_digits
from torchvision.transforms.v2.functional import resize

from datamodules.base import SourceDataModule
from ssl_suite.data import splits
from ssl_suite.data.sources import ArraySource, Source


class DigitsDataModule(SourceDataModule):
    """The UCI optical digits, 8x8 grey pixels, 10 classes.

    Args:
        test_fraction: share of each class that makes the test part; the choice follows ``seed``.
        size: side of the pictures in pixels; larger ones than the original 8 are interpolated.
        common: see `SourceDataModule`.
    """

    modality = "images"

    def __init__(self, *, test_fraction: float = 0.3, size: int = 8, **common: Any) -> None:
        super().__init__(**common)
        self.test_fraction, self.size = test_fraction, size

    def sources(self) -> dict[str, Source]:
        pixels, labels = load_digits(return_X_y=True)
        x = np.round(pixels * (255.0 / 16.0)).astype(np.uint8).reshape(-1, 1, 8, 8)
        if self.size != 8:
            x = resize(torch.from_numpy(x), [self.size, self.size], antialias=True).numpy()
        train, test = splits.hold_out(labels, len(x), self.test_fraction, self.seed, "data.test_fraction")
        return {"train": ArraySource(x[train], labels[train]), "test": ArraySource(x[test], labels[test])}
