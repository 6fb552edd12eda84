"""Pictures with masks, from arrays and from folders."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.io import write_png

from datamodules.images.segmentation_arrays import SegmentationArraysDataModule
from datamodules.images.segmentation_folder import SegmentationFolderDataModule
from ssl_suite.testing.data import check_datamodule
from tests.runs import masks

SCRATCH = {"batch_size": 4, "mu": 2, "labels": 5}


@pytest.fixture
def arrays(tmp_path: Path) -> Callable[..., Path]:
    def write(**given: np.ndarray) -> Path:
        np.savez(tmp_path / "data.npz", **given)
        return tmp_path / "data.npz"

    return write


def pictures(n: int = 8, h: int = 6, w: int = 8) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (n, h, w, 3)).astype(np.uint8)


def labels(n: int = 8, h: int = 6, w: int = 8, k: int = 3) -> np.ndarray:
    return np.random.default_rng(1).integers(0, k, (n, h, w)).astype(np.uint8)


def test_arrays_pass_every_check(tmp_path: Path):
    data = SegmentationArraysDataModule(masks(tmp_path), **SCRATCH)
    check_datamodule(data)
    assert data.spec.masks
    assert data.spec.classes == ("sky", "road", "car")
    assert len(data.labeled) == 5
    assert data.parts["train"][0].targets is None


def test_parts_numbers_that_do_not_count_and_their_names(arrays):
    train, val = labels(k=4), labels(k=4)
    data = SegmentationArraysDataModule(arrays(train_images=pictures(), train_labels=train, val_images=pictures(), val_labels=val,
                                               class_names=np.array(["a", "b", "c", "void"])), ignore=[1, 3], val_fraction=0.0)
    data.setup()
    assert data.spec.classes == ("a", "c")
    y = data.parts["train"][0].fetch(np.arange(8))["y"].numpy()
    assert ((train == 0) == (y == 0)).all()
    assert ((train == 2) == (y == 1)).all()
    assert (np.isin(train, [1, 3]) == (y == 255)).all()
    assert len(data.parts["test"][1]) == 8


def test_padding_is_cut_off_before_resizing(arrays):
    x, y, sizes = pictures(), labels(), np.tile([[6, 8]], (8, 1))
    sizes[0], y[0, 3:], x[0, 3:] = (3, 8), 255, 0
    data = SegmentationArraysDataModule(arrays(images=x, masks=y, sizes=sizes), size=[12, 16], test_fraction=0.25, val_fraction=0.0)
    data.setup()
    whole = [data.parts[part][0].fetch(np.arange(len(data.parts[part][0]))) for part in ("train", "test")]
    both = {key: torch.cat([part[key] for part in whole]) for key in ("x", "y")}
    assert both["x"].shape == (8, 3, 12, 16)
    assert not (both["y"] == 255).any()
    assert any(torch.equal(m, torch.from_numpy(y[0, :3]).repeat_interleave(4, 0).repeat_interleave(2, 1)) for m in both["y"])


@pytest.mark.parametrize(("given", "options", "message"), [
    ({"images": pictures()}, {}, r"no masks \(N, H, W\) for images.*data\.y"),
    ({"images": pictures(), "masks": labels(), "mask_names": np.array(["a", "b", "c"])}, {"y": "mask"}, r"no masks"),
    ({"images": pictures(), "masks": labels(h=5)}, {}, r"need masks \(6, 6, 8\)"),
    ({"images": pictures(), "masks": labels().astype(float)}, {}, r"holds float64"),
    ({"images": pictures(), "masks": labels()}, {"ignore": [0, 1, 2]}, r"leaves 0 of"),
    ({"images": pictures(), "masks": labels()}, {"labels_per_class": 2}, r"labels_per_class=2 needs class labels.*data\.labels"),
])
def test_mistakes_are_told(arrays, given, options, message):
    with pytest.raises(ValueError, match=message):
        SegmentationArraysDataModule(arrays(**given), **options).setup()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two parts of four pictures; the masks of the second have a palette."""
    rng = np.random.default_rng(0)
    for part in ("train", "test"):
        for name in ("images", "masks"):
            (tmp_path / part / name).mkdir(parents=True)
        for i in range(4):
            write_png(torch.from_numpy(rng.integers(0, 256, (3, 9, 12)).astype(np.uint8)), str(tmp_path / part / f"images/{i}.png"))
            mask = Image.fromarray(np.full((9, 12), i % 3, np.uint8), mode="P" if part == "test" else "L")
            if part == "test":
                mask.putpalette([0, 0, 0, 200, 10, 10, 10, 200, 10] + [0] * 759)
            mask.save(tmp_path / part / f"masks/{i}.png")
    (tmp_path / "classes.json").write_text(json.dumps(["sky", "road", "car"]))
    return tmp_path


def test_folders_pass_every_check(folder: Path):
    data = SegmentationFolderDataModule(folder, size=8, batch_size=2, mu=1, labels=2, val_fraction=0.0)
    check_datamodule(data)
    assert data.spec.shape == (3, 8, 8)
    y = data.parts["test"][0].fetch(np.arange(4))["y"]
    assert y.flatten(1).float().mean(1).tolist() == [0.0, 1.0, 2.0, 0.0]                # numbers, not the palette's colours


def test_mistakes_in_folders_are_told(folder: Path):
    make = SegmentationFolderDataModule
    with pytest.raises(ValueError, match=r"no pictures in a folder JPEGImages.*data\.images"):
        make(folder, images="JPEGImages").setup()
    Image.fromarray(np.full((9, 12), 7, np.uint8)).save(folder / "train/masks/0.png")
    with pytest.raises(ValueError, match=r"holds \[7\], which are no classes.*data\.ignore"):
        make(folder, size=8, val_fraction=0.0).setup()
    (folder / "train/masks/0.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"0\.png has no mask"):
        make(folder, size=8).setup()
    (folder / "classes.json").unlink()
    with pytest.raises(ValueError, match=r"classes\.json does not exist.*data\.classes"):
        make(folder, size=8).setup()


def test_pseudo_masks_stand_beside_their_pictures(tmp_path: Path):
    path, guesses = masks(tmp_path), tmp_path / "pseudo.npz"
    target = np.random.default_rng(4).integers(0, 3, (3, 16, 16)).astype(np.uint8)
    np.savez(guesses, index=np.array([2, 5, 7]), target=target, confidence=np.ones(3), kept=np.array([True, False, True]))
    data = SegmentationArraysDataModule(path, pseudo_masks=guesses, **SCRATCH)
    data.form = "semi"
    data.setup()
    batch = data.parts["train"][0].fetch(np.array([7, 2, 5, 1]))
    assert torch.equal(batch["pseudo"][:2], torch.from_numpy(target[[2, 0]]))
    assert (batch["pseudo"][2:] == 255).all()
    unlabeled = next(iter(data.train_dataloader()))[0]["unlabeled"]
    assert "y" not in unlabeled
    assert unlabeled["pseudo"].shape == (8, 16, 16)
    assert "pseudo" not in data.parts["test"][0].fetch(np.arange(2))


@pytest.mark.parametrize(("arrays_given", "message"), [
    ({"index": [0]}, r"must hold the arrays index and target, not index"),
    ({"index": [0], "target": np.zeros((1, 8, 8))}, r"do not fit the 29 pictures of 16x16"),
    ({"index": [99], "target": np.zeros((1, 16, 16))}, r"do not fit"),
    ({"index": [0], "target": np.full((1, 16, 16), 3)}, r"holds \[3\], which are none of 3 classes")])
def test_pseudo_masks_of_other_data_are_refused(tmp_path: Path, arrays_given, message):
    np.savez(tmp_path / "pseudo.npz", **{k: np.array(v) for k, v in arrays_given.items()})
    with pytest.raises(ValueError, match=message):
        SegmentationArraysDataModule(masks(tmp_path), pseudo_masks=tmp_path / "pseudo.npz").setup()
    with pytest.raises(FileNotFoundError, match=r"data\.pseudo_masks=.* does not exist"):
        SegmentationArraysDataModule(masks(tmp_path), pseudo_masks=tmp_path / "other.npz").setup()


@pytest.mark.parametrize(("name", "options", "classes", "train", "test"), [
    ("wbc_zheng1", {"size": 64, "test_fraction": 0.25}, ("background", "cytoplasm", "nucleus"), 225, 75),
    ("camvid_160x120", {"ignore": [11]}, 11, 367, 101)])
def test_real_sets(shared_data: Path, name: str, options, classes, train: int, test: int):
    if not (shared_data / f"{name}.npz").exists():
        pytest.skip(f"SSL_SUITE_DATA holds no {name}.npz")
    data = SegmentationArraysDataModule(shared_data / f"{name}.npz", **options, **SCRATCH)
    check_datamodule(data)
    assert data.spec.classes == classes or data.spec.num_classes == classes
    assert (sum(len(data.parts[part][1]) for part in ("train", "val")), len(data.parts["test"][1])) == (train, test)
    y = next(iter(data.test_dataloader()))["y"]
    assert (y == 255).any() == (name == "camvid_160x120")
