"""Batches on the device: decoded there, the same pictures in the same order; on a CPU everything but the stream."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision.io import encode_jpeg

from datamodules.images.image_arrays import ImageArraysDataModule
from datamodules.images.image_folder import ImageFolderDataModule
from datamodules.loader import DeviceLoader


def batches(data: Any) -> list[dict[str, Tensor]]:
    data.setup()
    return list(data.train_dataloader())


def equal(left: list[dict[str, Tensor]], right: list[dict[str, Tensor]]) -> bool:
    pairs = list(zip(left, right, strict=True))
    return all(a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a) for a, b in pairs)


@pytest.mark.parametrize("workers", [0, 2])
def test_who_decodes_changes_no_picture(packed: Path, workers: int) -> None:
    options: dict[str, Any] = {"size": 6, "batch_size": 3, "val_fraction": 0.0}
    in_workers = batches(ImageArraysDataModule(packed, **options))
    on_device = batches(ImageArraysDataModule(packed, decode="device", num_workers=workers, **options))
    assert in_workers[0]["x"].shape == (3, 3, 6, 6)
    assert equal(on_device, in_workers)


def test_what_is_no_jpeg_is_read_by_the_source(picture_folder: Callable[..., Path]) -> None:
    folder = picture_folder("train/a", "train/b", "test/a")
    (folder / "train" / "a" / "photo.jpg").write_bytes(encode_jpeg(torch.full((3, 12, 9), 7, dtype=torch.uint8)).numpy().tobytes())
    options: dict[str, Any] = {"size": 8, "batch_size": 11, "val_fraction": 0.0}
    in_workers, on_device = (batches(ImageFolderDataModule(folder, decode=who, **options)) for who in ("workers", "device"))
    assert equal(on_device, in_workers)


def test_another_picture_stands_in_for_a_damaged_one(packed: Path, tmp_path: Path) -> None:
    arrays = dict(np.load(packed))
    arrays["train_bytes"][:20] = 0
    np.savez(tmp_path / "damaged.npz", **arrays)
    options: dict[str, Any] = {"size": 6, "batch_size": 6, "val_fraction": 0.0}
    with pytest.warns(UserWarning, match=r"picture 0 of train_bytes cannot be read"):
        on_device = batches(ImageArraysDataModule(tmp_path / "damaged.npz", decode="device", **options))
    with pytest.warns(UserWarning, match=r"picture 0 of train_bytes cannot be read"):
        assert equal(on_device, batches(ImageArraysDataModule(tmp_path / "damaged.npz", **options)))


def test_mistakes_are_explained(packed: Path) -> None:
    with pytest.raises(ValueError, match=r"data\.decode=device must be workers, or device where data\.size is set"):
        ImageArraysDataModule(packed, decode="device")
    with pytest.raises(ValueError, match=r"data\.decode=gpu must be"):
        ImageArraysDataModule(packed, size=6, decode="gpu")  # type: ignore[arg-type]


@pytest.mark.gpu
def test_on_a_gpu_nearly_the_same_pictures(packed: Path) -> None:
    data = ImageArraysDataModule(packed, size=6, batch_size=3, decode="device")
    data.setup()
    on_cpu = data.train_dataloader()
    on_gpu = DeviceLoader(on_cpu.dataset, torch.device("cuda"), batch_sampler=on_cpu.batch_sampler, collate_fn=on_cpu.collate_fn)
    for here, there in zip(on_cpu, on_gpu, strict=True):
        assert there["x"].is_cuda
        assert torch.equal(there["y"].cpu(), here["y"])
        assert (there["x"].cpu().float() - here["x"].float()).abs().mean() < 3.0
