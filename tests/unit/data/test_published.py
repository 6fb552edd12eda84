"""Published folders: every layout is recognised and read, and what does not fit is told."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from ssl_suite.batch import Spec
from ssl_suite.data.published import open_folder
from ssl_suite.data.sources import ArraySource
from ssl_suite.data.streams import CLEAN, ShiftStreams

WNIDS = ("n01", "n02", "n03", "n04")
CIFAR = Spec("images", (3, 32, 32), tuple("abcdefghij"), mean=(0.5,) * 3, std=(0.25,) * 3)
IMAGENET = Spec("images", (3, 16, 16), WNIDS, mean=(0.5,) * 3, std=(0.25,) * 3)


def cifar_c(folder: Path, n: int = 20) -> Path:
    """Two corruptions in which every pixel tells severity and place: 40 s + i."""
    folder.mkdir()
    y = np.random.default_rng(0).integers(0, 10, n).astype(np.uint8)
    value = np.concatenate([40 * s + np.arange(n) for s in range(1, 6)]).astype(np.uint8)
    for name, shift in (("fog", 0), ("gaussian_noise", 1), ("speckle_noise", 2)):
        np.save(folder / f"{name}.npy", np.broadcast_to((value + shift)[:, None, None, None], (5 * n, 32, 32, 3)))
    np.save(folder / "labels.npy", np.tile(y, 5))
    return folder


def pictures(folder: Path, classes: tuple[str, ...], each: int = 3) -> Path:
    """Plain pictures of 20 by 16 pixels, brighter by class."""
    for i, name in enumerate(classes):
        (folder / name).mkdir(parents=True)
        for j in range(each):
            Image.new("RGB", (20, 16), (60 * i + j,) * 3).save(folder / name / f"{j}.JPEG", quality=100)
    return folder


def clean_data(spec: Spec) -> Any:
    source = ArraySource(np.zeros((8, *spec.shape), np.uint8), np.arange(8) % max(1, spec.num_classes))
    return SimpleNamespace(parts={"test": (source, np.arange(8))})


def read(folder: Path, spec: Spec, **given: Any) -> list[tuple[Any, list[dict[str, Any]]]]:
    streams = ShiftStreams(folder=folder, batch_size=8, **given)
    data = clean_data(spec)
    return [(segment, list(streams.read(data, spec, segment))) for segment in streams.segments(data, spec)]


@pytest.mark.parametrize("severity", [1, 5])
def test_cifar_c(tmp_path: Path, severity: int) -> None:
    folder = cifar_c(tmp_path / "CIFAR-10-C")
    y = np.load(folder / "labels.npy")
    found = read(folder, CIFAR, severity=severity)
    assert [s.name for s, _ in found] == ["gaussian_noise", "fog"], "the benchmark's, in its order, without spares"
    for shift, (_, batches) in zip((1, 0), found, strict=True):
        assert sorted(i for b in batches for i in b["index"].tolist()) == list(range(20))
        for batch in batches:
            pixel = (batch["x"] * 0.25 + 0.5) * 255
            expected = (40 * severity + batch["index"] + shift).float()
            torch.testing.assert_close(pixel, expected.view(-1, 1, 1, 1).expand_as(pixel), atol=1e-3, rtol=0)
            assert batch["y"].tolist() == y[batch["index"].numpy()].tolist()


def test_cifar_c_stays_on_disk_and_takes_every_order(tmp_path: Path) -> None:
    folder = cifar_c(tmp_path / "c")
    source = open_folder(folder, CIFAR)["fog", 2]()
    base = source.x
    while not isinstance(base, np.memmap):
        base = base.base
    assert [s.name for s, _ in read(folder, CIFAR, order="gradual", shifts=["fog"])][:2] == ["fog:1", "fog:2"]
    ((mixed, batches),) = read(folder, CIFAR, order="mixed", shifts=["speckle_noise", CLEAN])
    assert len(mixed) == 28
    assert sum(len(b["x"]) for b in batches) == 28
    assert mixed.classes is None, "clean data have every class"


def test_cifar_10_1(tmp_path: Path) -> None:
    for version, n in (("v4", 7), ("v6", 9)):
        np.save(tmp_path / f"cifar10.1_{version}_data.npy", np.full((n, 32, 32, 3), n, np.uint8))
        np.save(tmp_path / f"cifar10.1_{version}_labels.npy", np.arange(n, dtype=np.int32))
    found = read(tmp_path, CIFAR)
    assert [(s.name, len(s)) for s, _ in found] == [("cifar10.1_v4", 7), ("cifar10.1_v6", 9)]
    assert [s.name for s, _ in read(tmp_path, CIFAR, shifts="cifar10.1_v6")] == ["cifar10.1_v6"]
    with pytest.raises(ValueError, match=r"holds no severity 1 of cifar10.1_v4; there are none"):
        read(tmp_path, CIFAR, order="gradual")


def test_imagenet_c(tmp_path: Path) -> None:
    for name in ("fog", "frost"):
        for severity in (3, 5):
            pictures(tmp_path / name / str(severity), WNIDS)
    found = read(tmp_path, IMAGENET, severity=3)
    assert [s.name for s, _ in found] == ["frost", "fog"]
    for _, batches in found:
        for batch in batches:
            assert batch["x"].shape[1:] == (3, 16, 16)
            level = ((batch["x"].mean((1, 2, 3)) * 0.25 + 0.5) * 255).round()
            assert (level // 60).long().tolist() == batch["y"].tolist()
    with pytest.raises(ValueError, match=r"no severity 1 of frost; there are 3, 5"):
        read(tmp_path, IMAGENET, severity=1)


def test_folders_of_some_classes_confine_the_predictions(tmp_path: Path) -> None:
    folder = pictures(tmp_path / "imagenet-r", ("n02", "n04"))
    ((segment, batches),) = read(folder, IMAGENET)
    assert segment.name == "imagenet-r"
    assert segment.classes.tolist() == [1, 3]
    assert sorted(y for b in batches for y in b["y"].tolist()) == [1, 1, 1, 3, 3, 3]


def test_class_list(tmp_path: Path) -> None:
    folder = pictures(tmp_path / "imagenet-a", ("n02", "n04"))
    numbered = replace(IMAGENET, classes=("0", "1", "2", "3"))
    with pytest.raises(ValueError, match=r"n02, n04 beside 0, 1, 2 .*stream\.class_list=FILE"):
        read(folder, numbered)
    listed = tmp_path / "classes.txt"
    listed.write_text("n04 last word\nn03\nn02\nn01\n")
    ((segment, _),) = read(folder, numbered, class_list=listed)
    assert segment.classes.tolist() == [0, 2]
    listed.write_text("n04\nn02\n")
    with pytest.raises(ValueError, match="lists 2 classes, and the network has 4"):
        read(folder, numbered, class_list=listed)
    with pytest.raises(FileNotFoundError, match=r"class_list=.*nowhere does not exist"):
        read(folder, numbered, class_list=tmp_path / "nowhere")


def test_what_does_not_fit_is_told(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"stream\.folder=.*nowhere does not exist"):
        read(tmp_path / "nowhere", CIFAR)
    (tmp_path / "readme.txt").touch()
    with pytest.raises(ValueError, match=r"none of the layouts CORRUPTION\.npy with labels\.npy .* it holds readme\.txt"):
        read(tmp_path, CIFAR)
    folder = cifar_c(tmp_path / "c")
    with pytest.raises(ValueError, match=r"no shift 'frost' of .*; there are clean, gaussian_noise, fog, speckle_noise"):
        read(folder, CIFAR, shifts=["frost"])
    with pytest.raises(ValueError, match=r"shape \(3, 32, 32\), and the network takes \(3, 16, 16\)"):
        read(folder, IMAGENET)
    with pytest.raises(ValueError, match="and the network has 4 classes"):
        read(folder, replace(CIFAR, classes=WNIDS))
    with pytest.raises(ValueError, match="hold images, and the network takes speech"):
        read(folder, Spec("speech", (1600,)))
    np.save(folder / "fog.npy", np.zeros((99, 32, 32, 3), np.uint8))
    with pytest.raises(ValueError, match=r"fog\.npy has shape \(99, 32, 32, 3\)"):
        read(folder, CIFAR, shifts=["fog"])
    with pytest.raises(ValueError, match="holds colour pictures, and the network takes 1 channel"):
        read(pictures(tmp_path / "p", WNIDS), replace(IMAGENET, shape=(1, 16, 16)))
    np.save(tmp_path / "cifar10.1_v6_data.npy", np.zeros((4, 32, 32, 3), np.uint8))
    with pytest.raises(FileNotFoundError, match=r"cifar10\.1_v6_labels\.npy is missing"):
        read(tmp_path, CIFAR)
