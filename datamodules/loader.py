"""Loaders whose batches lie on the device when training asks for them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import lightning as L
import torch
from lightning.fabric.utilities import move_data_to_device
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision.io import ImageReadMode, decode_jpeg

from ssl_suite.batch import Batch
from ssl_suite.data.files import to_square
from ssl_suite.data.sources import Indexed, as_is

Decode = Literal["workers", "device"]


def decoder(decode: Decode, size: int | None) -> Decode:
    """``decode`` if it says who decodes pictures that are brought to ``size`` pixels; ValueError otherwise."""
    if decode not in ("workers", "device") or (decode == "device" and size is None):
        raise ValueError(f"data.decode={decode} must be workers, or device where data.size is set")
    return decode


def device_of(trainer: L.Trainer | None) -> torch.device:
    """Where a trainer trains; without one, the CPU."""
    return trainer.strategy.root_device if trainer else torch.device("cpu")


def loader(dataset: Indexed, sampler: Any, workers: int, trainer: L.Trainer | None) -> DataLoader[Any]:
    """Batches of ``sampler``, read by ``workers`` processes, or by this one for 0; on a GPU by a `DeviceLoader`."""
    device = device_of(trainer)
    options: dict[str, Any] = {"batch_sampler": sampler, "num_workers": workers, "collate_fn": as_is,
                               "pin_memory": device.type == "cuda", "persistent_workers": workers > 0}
    if device.type == "cuda" or dataset.encoded:
        return DeviceLoader(dataset, device, **options)
    return DataLoader(dataset, **options)


class DeviceLoader(DataLoader[Any]):
    """Batches on the device, copied on a stream of their own while the step before is computed.

    JPEG that the data set left encoded is decoded there as well, on a GPU by nvJPEG, then resized and cut to a square; batches with
    a picture that is no JPEG, or damaged, are read by the source itself, which finds another picture for a bad one. nvJPEG ignores
    EXIF orientation and its pixels may differ from the CPU's by rounding.

    Args:
        dataset: where batches come from.
        device: where they go.
        options: as `torch.utils.data.DataLoader` takes them.
    """

    def __init__(self, dataset: Indexed, device: torch.device, **options: Any) -> None:
        super().__init__(dataset, **options)
        self.device = device

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        streams = torch.get_device_module(self.device)
        own = streams.Stream()
        for batch in super().__iter__():
            with streams.stream(own):
                if "encoded" in batch:
                    batch["x"] = self.decoded(batch.pop("encoded"), batch["index"])
                moved = move_data_to_device(batch, self.device)
            streams.current_stream().wait_stream(own)
            for x in moved.values():
                if x.is_cuda:
                    x.record_stream(streams.current_stream())
            yield moved

    def decoded(self, encoded: list[Tensor], index: Tensor) -> Tensor:
        """Pictures uint8 (B, 3, size, size) from the contents of their files."""
        source: Any = self.dataset.source  # type: ignore[attr-defined]
        try:
            pictures = decode_jpeg(encoded, ImageReadMode.RGB, self.device, apply_exif_orientation=True)
        except RuntimeError:
            return source.fetch(index.numpy())["x"]
        return torch.stack([to_square(x, source.size) for x in pictures])
