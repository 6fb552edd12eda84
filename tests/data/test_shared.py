"""Real data sets, read where the environment variable SSL_SUITE_DATA names a folder that holds them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from datamodules.images.image_arrays import ImageArraysDataModule
from datamodules.series.series_arrays import SeriesArraysDataModule
from datamodules.series.series_table import SeriesTableDataModule
from datamodules.speech.speech_arrays import SpeechArraysDataModule
from ssl_suite.testing.data import check_datamodule


@pytest.fixture
def find(shared_data: Path):
    """Path of a file of the folder; the test is skipped where it lacks."""

    def path(name: str) -> Path:
        if not (shared_data / name).exists():
            pytest.skip(f"SSL_SUITE_DATA holds no {name}")
        return shared_data / name

    return path


def sizes(data) -> tuple[int, int]:
    return sum(len(data.parts[part][1]) for part in ("train", "val")), len(data.parts["test"][1])


@pytest.mark.parametrize(
    ("name", "shape", "classes", "train", "test"),
    [
        ("cifar10_small", (3, 32, 32), 10, 2000, 1000),
        ("mnist", (1, 28, 28), 10, 60000, 10000),
        ("omniglot", (1, 105, 105), 136, 2176, 544),
        ("wbc_zheng1", (3, 120, 120), 5, 240, 60),
        ("camvid_160x120", (3, 120, 160), 0, 367, 101),
    ],
)
def test_pictures(find, name: str, shape, classes: int, train: int, test: int):
    data = ImageArraysDataModule(find(f"{name}.npz"), batch_size=16)
    data.setup()
    assert (data.spec.shape, data.spec.num_classes) == (shape, classes)
    assert sizes(data) == (train, test)
    assert all(0.02 < m < 0.98 for m in data.spec.mean)
    assert next(iter(data.train_dataloader()))["x"].shape == (16, *shape)


def test_packed_pictures_equal_the_decoded_ones(find):
    data = ImageArraysDataModule(find("cifar10_jpeg.npz"), max_train=2000, max_test=1000, val_fraction=0.0)
    other = ImageArraysDataModule(find("cifar10_small.npz"), val_fraction=0.0)
    for module in (data, other):
        module.setup()
    assert data.spec.classes == other.spec.classes
    for part in ("train", "test"):
        a, b = (module.parts[part][0].fetch(np.arange(1000)) for module in (data, other))
        assert torch.equal(a["y"], b["y"])
        assert (a["x"].int() - b["x"].int()).abs().max() <= 2, "decoders may differ by rounding only"


@pytest.mark.parametrize(("name", "options", "rate", "classes", "train", "test"), [
    ("fsdd", {"test_where": {"indices": [0, 1, 2, 3, 4]}}, 8000, 10, 1800, 200),
    ("fsdd", {"test_where": {"speakers": ["lucas"]}, "rate": 16000}, 16000, 10, 1500, 500),
    ("arabic_commands", {}, 8000, 10, 720, 240), ("speech_utterances", {}, 16000, 0, 12, 3)])
@pytest.mark.filterwarnings("ignore:symbols that the training texts lack")
def test_recordings(find, name: str, options, rate: int, classes: int, train: int, test: int):
    data = SpeechArraysDataModule(find(f"{name}.npz"), batch_size=4, **options)
    check_datamodule(data)
    assert (data.spec.rate, data.spec.num_classes, bool(data.spec.vocabulary)) == (rate, classes, not classes)
    assert sizes(data) == (train, test)


@pytest.mark.parametrize(("name", "shape", "classes", "train", "test"), [
    ("GunPoint", (1, 150), 2, 50, 150), ("ItalyPowerDemand", (1, 24), 2, 67, 1029), ("ArrowHead", (1, 251), 3, 36, 175),
    ("OSULeaf", (1, 427), 6, 200, 242), ("BasicMotions", (6, 100), 4, 40, 40), ("Epilepsy", (3, 206), 4, 137, 138),
    ("JapaneseVowels", (12, 26), 9, 270, 370), ("ECG5000", (1, 140), 5, 349, 151)])
def test_named_series(find, name: str, shape, classes: int, train: int, test: int):
    data = SeriesArraysDataModule(find("ucr_series.npz"), name=name, batch_size=4)
    check_datamodule(data)
    assert data.spec.shape[0] == shape[0]
    assert data.spec.shape[1] >= shape[1]
    assert data.spec.num_classes == classes
    assert sizes(data) == (train, test)


def test_features_end_to_end(find):
    data = SeriesArraysDataModule(find("an4_mfcc.npz"), batch_size=4)
    check_datamodule(data)
    assert data.spec.shape[0] == 13
    assert sizes(data) == (834, 114)


def test_a_table(find):
    pytest.importorskip("pandas", reason="tables need the extra 'series'")
    data = SeriesTableDataModule(find("ETTh1.csv"), batch_size=4)
    check_datamodule(data)
    assert data.spec.shape == (7, 96)
