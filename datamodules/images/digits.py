"""Handwritten digits that come with scikit-learn: 1797 real pictures, no download."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import torch
from sklearn.datasets import load_digits
from torchvision.transforms.v2.functional import InterpolationMode, resize, rotate

from datamodules.base import SourceDataModule
from ssl_suite.data import splits
from ssl_suite.data.sources import ArraySource, Source


class DigitsDataModule(SourceDataModule):
    """The UCI optical digits, 8x8 grey pixels, 10 classes.

    Args:
        test_fraction: share of each class that makes the test part; the choice follows ``seed``.
        size: side of the pictures in pixels; larger ones than the original 8 are interpolated.
        domain: ``upright`` as they are, ``turned`` by 90 degrees, ``tilted`` by 20, ``inverted``, or ``dimmed`` to half the
            contrast: what changes from set to set in scripts/continual.py.
        common: see `SourceDataModule`.
    """

    modality = "images"

    def __init__(self, *, test_fraction: float = 0.3, size: int = 8,
                 domain: Literal["upright", "turned", "tilted", "inverted", "dimmed"] = "upright", **common: Any) -> None:
        super().__init__(**common)
        self.test_fraction, self.size, self.domain = test_fraction, size, domain

    def sources(self) -> dict[str, Source]:
        pixels, labels = load_digits(return_X_y=True)
        x = np.round(pixels * (255.0 / 16.0)).astype(np.uint8).reshape(-1, 1, 8, 8)
        if self.size != 8:
            x = resize(torch.from_numpy(x), [self.size, self.size], antialias=True).numpy()
        x = changed(x, self.domain)
        train, test = splits.hold_out(labels, len(x), self.test_fraction, self.seed, "data.test_fraction")
        self.rows = {"train": train, "test": test}
        return {"train": ArraySource(x[train], labels[train]), "test": ArraySource(x[test], labels[test])}


def changed(x: np.ndarray, domain: str) -> np.ndarray:
    """Pictures (N, 1, H, W) uint8 as another domain shows them.

    Raises:
        ValueError: there is no such domain.
    """
    if domain in ("turned", "tilted"):
        return rotate(torch.from_numpy(x), 90.0 if domain == "turned" else 20.0, InterpolationMode.BILINEAR).numpy()
    if domain not in ("upright", "inverted", "dimmed"):
        raise ValueError(f"data.domain={domain} is none of upright, turned, tilted, inverted, dimmed")
    return {"upright": x, "inverted": 255 - x, "dimmed": x // 2}[domain]
