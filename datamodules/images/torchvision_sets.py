"""Picture sets that torchvision knows how to read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from torchvision import datasets

from datamodules.base import SourceDataModule
from ssl_suite.data.arrays import as_pictures
from ssl_suite.data.sources import ArraySource, Source

SETS = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100, "stl10": datasets.STL10, "mnist": datasets.MNIST}


class TorchvisionDataModule(SourceDataModule):
    """CIFAR-10, CIFAR-100, STL-10 (its labelled parts) or MNIST from a local folder.

    Args:
        name: ``cifar10``, ``cifar100``, ``stl10`` or ``mnist``.
        path: folder that holds, or is to hold, the files as torchvision lays them out.
        download: fetch the files first; nothing is downloaded unasked.
        common: see `SourceDataModule`.

    Raises:
        FileNotFoundError: the files are missing and ``download`` is False.
        ValueError: the name is unknown.
    """

    modality = "images"

    def __init__(self, name: str, path: str | Path, *, download: bool = False, **common: Any) -> None:
        super().__init__(**common)
        if name not in SETS:
            raise ValueError(f"data.name={name} must be one of {', '.join(SETS)}")
        self.kind, self.path, self.download = name, Path(path).expanduser(), download
        self.names: tuple[str, ...] = ()

    def class_names(self) -> tuple[str, ...]:
        return self.names

    def prepare_data(self) -> None:
        if self.download:
            for part in ("train", "test"):
                self._open(part, download=True)

    def sources(self) -> dict[str, Source]:
        parts: dict[str, Source] = {}
        for part in ("train", "test"):
            data = self._open(part, download=False)
            labels = data.labels if self.kind == "stl10" else data.targets
            parts[part] = ArraySource(
                as_pictures(np.asarray(data.data), f"{self.kind} ({part})"), np.asarray(labels, dtype=np.int64)
            )
            self.names = tuple(str(c) for c in data.classes)
        return parts

    def _open(self, part: str, download: bool) -> Any:
        choice: dict[str, Any] = {"split": part} if self.kind == "stl10" else {"train": part == "train"}
        try:
            return SETS[self.kind](self.path, download=download, **choice)
        except RuntimeError as error:
            if download:
                raise
            raise FileNotFoundError(f"{self.kind} is not in data.path={self.path} ({str(error).splitlines()[0]}); "
                                    "put it there, or fetch it with data.download=true") from error
