from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from datamodules.series.bundled import BundledSeriesDataModule
from datamodules.series.series_arrays import SeriesArraysDataModule
from datamodules.series.series_table import SeriesTableDataModule
from datamodules.series.ucr_files import UCRDataModule
from ssl_suite.testing.data import check_datamodule


def everything(data, part="train"):
    source, rows = data.parts[part]
    return source.fetch(rows)


def random_series(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).normal(3.0, 2.0, shape).astype(np.float32)


@pytest.mark.parametrize("shape", [(12, 9), (12, 1, 9), (12, 3, 9)])
def test_arrays_of_series(tmp_path: Path, shape):
    x = random_series(*shape)
    np.savez(tmp_path / "a.npz", X_train=x, y_train=np.arange(12) % 3, X_test=x[:6], y_test=np.arange(6) % 3)
    data = SeriesArraysDataModule(tmp_path / "a.npz", batch_size=4)
    check_datamodule(data)
    assert data.spec.shape == ((1, 9) if len(shape) == 2 else shape[1:])
    kept = everything(data)["x"].double()
    assert data.spec.mean == pytest.approx(kept.mean((0, 2)).tolist(), rel=1e-6)
    assert data.spec.std == pytest.approx(kept.std((0, 2), correction=0).tolist(), rel=1e-6)
    assert "length" not in everything(data)


@pytest.mark.parametrize("stored", ["nan", "lengths"])
def test_unequal_series_are_padded_with_zeros_and_counted(tmp_path: Path, stored: str):
    x, lengths = random_series(8, 2, 10), np.array([10, 3, 7, 5, 10, 4, 6, 8])
    for row, n in zip(x, lengths, strict=True):
        row[:, n:] = np.nan if stored == "nan" else 1e6
    extra = {"len_train": lengths, "len_test": lengths} if stored == "lengths" else {}
    np.savez(tmp_path / "a.npz", A_X_train=x, A_X_test=x, A_y_train=np.arange(8) % 2, A_y_test=np.arange(8) % 2,
             **{f"A_{key}": value for key, value in extra.items()}, B_X_train=x)
    data = SeriesArraysDataModule(tmp_path / "a.npz", name="A", batch_size=4, val_fraction=0.0)
    check_datamodule(data)
    batch = everything(data)
    assert batch["length"].tolist() == lengths.tolist()
    assert not batch["x"][1, :, 3:].any()
    valid = np.concatenate([row[:, :n] for row, n in zip(x, lengths, strict=True)], axis=1)
    assert data.spec.mean == pytest.approx(valid.mean(1).tolist(), rel=1e-5)
    assert data.spec.std == pytest.approx(valid.std(1).tolist(), rel=1e-5)


def test_a_batch_is_as_long_as_its_longest_sample(tmp_path: Path):
    x = random_series(6, 1, 10)
    x[:, :, 6:] = np.nan
    x[0, :, :] = 1.0
    np.savez(tmp_path / "a.npz", X_train=x, X_test=x)
    data = SeriesArraysDataModule(tmp_path / "a.npz", val_fraction=0.0)
    data.setup()
    source = data.parts["train"][0]
    assert source.fetch(np.array([1, 2]))["x"].shape == (2, 1, 6)
    assert source.fetch(np.array([0, 2]))["x"].shape == (2, 1, 10)
    assert data.spec.shape == (1, 10)


def test_pieces_end_to_end_follow_their_split(tmp_path: Path):
    lengths = np.arange(3, 11)
    np.savez(
        tmp_path / "a.npz",
        mfcc=random_series(int(lengths.sum()), 4).astype(np.float16),
        offsets=np.cumsum([0, *lengths]),
        split=np.array(["train"] * 6 + ["dev"] * 2),
        texts=np.array(["x"] * 8),
    )
    data = SeriesArraysDataModule(tmp_path / "a.npz", batch_size=2, val_fraction=0.0)
    check_datamodule(data)
    assert data.spec.shape[0] == 4
    assert everything(data)["x"].dtype == torch.float32
    assert everything(data, "test")["length"].tolist() == [9, 10]
    assert torch.equal(
        everything(data)["x"][0, :, :3].T, torch.from_numpy(np.load(tmp_path / "a.npz")["mfcc"][:3]).float()
    )


def test_a_training_part_alone_is_divided(tmp_path: Path):
    np.savez(
        tmp_path / "a.npz",
        E_X_train=random_series(20, 1, 5),
        E_y_train=np.arange(20) % 2,
        E_classes=np.array(["low", "high"]),
    )
    data = SeriesArraysDataModule(tmp_path / "a.npz", name="E", val_fraction=0.0)
    data.setup()
    assert data.spec.classes == ("low", "high")
    assert [len(data.parts[part][1]) for part in ("train", "test")] == [14, 6]


def broken(where: tuple[int, ...], value: float = np.nan) -> dict[str, np.ndarray]:
    x = random_series(6, 2, 8)
    x[where] = value
    return {"X_train": x, "X_test": random_series(4, 2, 8)}


@pytest.mark.parametrize(("arrays", "options", "message"), [
    (broken((4, 1, 3)), {}, "sample 4 of X_train .* NaN"),
    (broken((4, 1, 7)), {}, "sample 4 of X_train .* NaN"),
    (broken((2, 0, 0), np.inf), {}, "sample 2 of X_train"),
    (broken((3,)), {}, "sample 3 of X_train .* is empty"),
    ({"X_train": np.zeros((2, 2, 2, 2)), "X_test": np.zeros((2, 2, 2, 2))}, {}, "series must be"),
    ({"A_X_train": np.zeros((4, 4)), "B_X_train": np.zeros((4, 4))}, {}, "data.name=None: .* A, B"),
    ({"A_X_train": np.zeros((4, 4))}, {"name": "C"}, "data.name=C"),
    ({"z": np.zeros((4, 4))}, {}, r"z \(4, 4\)"),
    ({"X": np.zeros((2, 4)), "y": np.arange(2)}, {"val_fraction": 1.0, "test_fraction": 0.0}, "val_fraction"),
])
def test_bad_arrays_are_explained(tmp_path: Path, arrays, options, message):
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(ValueError, match=message):
        SeriesArraysDataModule(tmp_path / "a.npz", **options).setup()


def test_a_hole_in_a_piece_is_found(tmp_path: Path):
    flat = random_series(30, 2)
    flat[12] = np.nan
    np.savez(
        tmp_path / "a.npz", flat=flat, offsets=np.array([0, 10, 20, 30]), split=np.array(["train", "train", "test"])
    )
    with pytest.raises(ValueError, match="sample 1 holds NaN"):
        SeriesArraysDataModule(tmp_path / "a.npz", val_fraction=0.0).setup()


def write_ts(file: Path, series: list[str]) -> None:
    file.write_text("@problemName Toy\n@timestamps false\n@missing false\n@univariate true\n@equalLength false\n"
                    "@classLabel true up down\n@data\n" + "\n".join(series))


@pytest.fixture
def ts_folder(tmp_path: Path) -> Path:
    """A pair of .ts files with series of unequal lengths."""
    pytest.importorskip("aeon", reason="reading .ts files needs the extra 'series'")
    write_ts(tmp_path / "Toy_TRAIN.ts", ["1,2,3,4:up", "4,3,2:down", "0,1,2,3,4:up", "9,8:down"])
    write_ts(tmp_path / "Toy_TEST.ts", ["5,6,7:up", "3,2,1:down"])
    return tmp_path


def test_ts_files(ts_folder: Path):
    for path in (ts_folder, ts_folder / "Toy_TRAIN.ts", ts_folder / "Toy_TEST.ts"):
        data = UCRDataModule(path, batch_size=2, val_fraction=0.0)
        data.setup()
        assert data.spec.classes == ("down", "up")
        assert data.spec.shape == (1, 5)
        batch = everything(data)
        assert batch["length"].tolist() == [4, 3, 5, 2]
        assert batch["y"].tolist() == [1, 0, 1, 0]
        assert batch["x"][1, 0].tolist() == [4, 3, 2, 0, 0]
    check_datamodule(UCRDataModule(ts_folder, batch_size=2, val_fraction=0.0))


def test_ts_mistakes_are_explained(ts_folder: Path, tmp_path: Path):
    with pytest.raises(FileNotFoundError, match=r"data\.path="):
        UCRDataModule(tmp_path / "absent").setup()
    (ts_folder / "Toy_TEST.ts").write_text("nonsense\n1,2,3:up\n")
    with pytest.raises(ValueError, match=r"Toy_TEST\.ts"):
        UCRDataModule(ts_folder).setup()
    (ts_folder / "Toy_TEST.ts").unlink()
    with pytest.raises(FileNotFoundError, match=r"NAME_TRAIN\.ts and NAME_TEST\.ts"):
        UCRDataModule(ts_folder).setup()


@pytest.mark.parametrize(
    ("name", "shape", "classes"), [("ItalyPowerDemand", (1, 24), 2), ("JapaneseVowels", (12, 26), 9)]
)
def test_bundled_sets(name: str, shape, classes: int):
    pytest.importorskip("aeon", reason="the bundled sets need the extra 'series'")
    data = BundledSeriesDataModule(name, batch_size=16)
    check_datamodule(data)
    assert data.spec.shape[0] == shape[0]
    assert data.spec.shape[1] >= shape[1]
    assert data.spec.num_classes == classes


def test_a_set_that_would_be_downloaded_is_refused():
    with pytest.raises(ValueError, match=r"data\.name=ECG200"):
        BundledSeriesDataModule("ECG200").setup()


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """A hundred rows: a date, two numbers, a class."""
    lines = ["date,a,b,state", *(f"2020-01-01 {i},{i},{-i - 0.5},{'on' if i % 20 < 10 else 'off'}" for i in range(100))]
    (tmp_path / "table.csv").write_text("\n".join(lines))
    return tmp_path / "table.csv"


def test_windows_of_a_table_never_cross_a_cut(table: Path):
    pytest.importorskip("pandas", reason="tables need the extra 'series'")
    data = SeriesTableDataModule(
        table, window=8, stride=3, batch_size=4, test_fraction=0.3, val_fraction=0.2, target="state"
    )
    check_datamodule(data)
    assert data.spec.shape == (2, 8)
    assert data.spec.classes == ("off", "on")
    for part, low, high in (("train", 0, 50), ("val", 50, 70), ("test", 70, 100)):
        batch = everything(data, part)
        rows = batch["x"][:, 0].long()
        assert rows.min() == low
        assert high - 3 <= rows.max() + 1 <= high
        assert torch.equal(rows[:, 1:], rows[:, :-1] + 1)
        assert torch.equal(batch["y"] == 1, rows[:, -1] % 20 < 10)


def test_columns_can_be_chosen(table: Path):
    pytest.importorskip("pandas", reason="tables need the extra 'series'")
    data = SeriesTableDataModule(table, window=8, columns=["b"], batch_size=4, stride=1, val_fraction=0.0)
    check_datamodule(data)
    assert everything(data)["x"][0, 0].tolist() == [-i - 0.5 for i in range(8)]


def test_parquet_reads_like_csv(table: Path):
    pandas = pytest.importorskip("pandas", reason="tables need the extra 'series'")
    pytest.importorskip("pyarrow", reason="Parquet needs the extra 'series'")
    pandas.read_csv(table).to_parquet(table.with_suffix(".parquet"))
    parts = []
    for file in (table, table.with_suffix(".parquet")):
        data = SeriesTableDataModule(file, window=8)
        data.setup()
        parts.append(everything(data)["x"])
    assert torch.equal(*parts)


@pytest.mark.parametrize(("options", "message"), [
    ({"columns": ["a", "c"]}, "no numeric column c"), ({"target": "kind"}, "no numeric column kind"),
    ({"window": 60}, "60"), ({"window": 1}, r"data\.window=1"), ({"test_fraction": 0.95}, r"data\.test_fraction"),
])
def test_table_mistakes_are_explained(table: Path, options, message):
    pytest.importorskip("pandas", reason="tables need the extra 'series'")
    with pytest.raises(ValueError, match=message):
        SeriesTableDataModule(table, **{"window": 8, **options}).setup()


def test_a_hole_in_a_table_is_named(table: Path):
    pytest.importorskip("pandas", reason="tables need the extra 'series'")
    table.write_text(table.read_text().replace("2020-01-01 7,7,", "2020-01-01 7,,"))
    with pytest.raises(ValueError, match=r"column a .* lacks 1 values, first in row 7"):
        SeriesTableDataModule(table, window=8).setup()
