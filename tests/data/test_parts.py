"""Where the test part is cut from one whole: in order of time, and with its places kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from datamodules.images.image_arrays import ImageArraysDataModule
from datamodules.series.series_arrays import SeriesArraysDataModule
from ssl_suite.config import validate
from ssl_suite.run import GROUPS, build_data
from tests.configs import composed

ORDER = np.arange(20)
PIECES = np.arange(0, 121, 6)
WHOLES: dict[str, dict[str, np.ndarray]] = {
    "series": {"X": np.tile(ORDER[:, None], 6).astype(np.float32)},
    "series_pieces": {"X": ORDER.repeat(6).astype(np.float32), "offsets": PIECES},
    "image": {"images": np.tile(ORDER[:, None, None], (4, 4)).astype(np.uint8)},
    "segmentation": {"images": np.tile(ORDER[:, None, None], (4, 4)).astype(np.uint8), "masks": np.zeros((20, 4, 4), np.uint8)},
    "speech": {"audio": ORDER.repeat(6).astype(np.int16), "offsets": PIECES, "rate": np.array(8000)}}


def first_values(data: Any, part: str) -> list[float]:
    """The first number of each sample of a part, which says where it stood."""
    source, rows = data.parts[part]
    return source.fetch(rows)["x"].flatten(1)[:, 0].tolist()


@pytest.mark.parametrize("name", WHOLES)
def test_30_30_40_in_order_of_time(tmp_path: Path, name: str) -> None:
    np.savez(tmp_path / "a.npz", **WHOLES[name], labels=ORDER % 2, split=np.array(["test", "train"] * 10))
    config = composed("model=supervised", f"data={name.split('_')[0]}_arrays", f"data.path={tmp_path / 'a.npz'}",
                      "data.test_where=end", "data.test_fraction=0.4", "data.val_from=end", "data.val_fraction=0.5",
                      folder=str(tmp_path))
    validate(config, GROUPS)
    data = build_data(config, None)
    parts = {part: first_values(data, part) for part in ("train", "val", "test")}
    assert parts == {"train": list(range(6)), "val": list(range(6, 12)), "test": list(range(12, 20))}
    assert data.split()["train_rows"].tolist() == list(range(12))
    assert data.split()["test_rows"].tolist() == list(range(12, 20))


@pytest.mark.parametrize("options", [{}, {"max_train": 8, "max_test": 2}])
def test_the_places_in_undivided_data_are_kept(tmp_path: Path, options: dict[str, int]) -> None:
    np.savez(tmp_path / "a.npz", **WHOLES["image"], labels=ORDER % 2)
    data = ImageArraysDataModule(tmp_path / "a.npz", val_fraction=0.25, test_fraction=0.2, **options)
    data.setup()
    kept = data.split()
    assert first_values(data, "train") == kept["train_rows"][kept["train"]].tolist()
    assert first_values(data, "val") == kept["train_rows"][kept["val"]].tolist()
    assert first_values(data, "test") == kept["test_rows"].tolist()


def test_data_that_bring_a_test_part_have_no_places(tmp_path: Path) -> None:
    x = np.random.default_rng(0).normal(size=(8, 6)).astype(np.float32)
    np.savez(tmp_path / "a.npz", X_train=x, X_test=x)
    data = SeriesArraysDataModule(tmp_path / "a.npz")
    data.setup()
    assert not {"train_rows", "test_rows"} & data.split().keys()


@pytest.mark.parametrize("options", [{"test_where": "begin"}, {"test_where": "end", "test_fraction": 1.0}])
def test_a_test_part_that_is_not_the_last_is_explained(tmp_path: Path, options: dict[str, Any]) -> None:
    np.savez(tmp_path / "a.npz", **WHOLES["series"])
    with pytest.raises(ValueError, match=r"data\.test_where=\w+ must be end, the last data\.test_fraction"):
        SeriesArraysDataModule(tmp_path / "a.npz", **options).setup()
