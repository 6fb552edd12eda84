"""Small files of every kind that the data modules read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision.io import encode_jpeg, write_png


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder of its own for every test."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("SSL_SUITE_CACHE", str(folder))
    return folder


@pytest.fixture
def picture_folder(tmp_path: Path) -> Callable[..., Path]:
    """Makes a folder of PNG files, 5 of each class, 9 by 12 pixels."""

    def make(*places: str, n: int = 5) -> Path:
        generator = torch.Generator().manual_seed(0)
        for place in places:
            folder = tmp_path / "pictures" / place
            folder.mkdir(parents=True)
            for i in range(n):
                picture = torch.randint(0, 256, (3, 9, 12), dtype=torch.uint8, generator=generator)
                write_png(picture, str(folder / f"{i}.png"))
        return tmp_path / "pictures"

    return make


@pytest.fixture
def packed(tmp_path: Path) -> Path:
    """An archive of packed JPEG without a shared header, 6 training and 4 test pictures of 8 by 8 pixels."""
    arrays: dict[str, np.ndarray] = {"class_names": np.array(["a", "b"])}
    for part, n in (("train", 6), ("test", 4)):
        generator = torch.Generator().manual_seed(n)
        pictures = torch.randint(0, 256, (n, 3, 8, 8), dtype=torch.uint8, generator=generator)
        encoded = [encode_jpeg(p, 95).numpy() for p in pictures]
        arrays |= {f"{part}_bytes": np.concatenate(encoded), f"{part}_labels": np.arange(n) % 2,
                   f"{part}_offsets": np.cumsum([0, *map(len, encoded)])}
    np.savez(tmp_path / "packed.npz", **arrays)
    return tmp_path / "packed.npz"
