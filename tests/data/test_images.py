from __future__ import annotations

import gzip
import struct
import warnings
from pathlib import Path

import lightning as L
import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torchvision.io import encode_jpeg

from datamodules.images.digits import DigitsDataModule
from datamodules.images.image_arrays import ImageArraysDataModule
from datamodules.images.image_folder import ImageFolderDataModule
from datamodules.images.torchvision_sets import TorchvisionDataModule
from ssl_suite.data import packed as packed_module
from ssl_suite.data.files import decode_picture
from ssl_suite.testing.data import check_datamodule


def everything(data, part="train"):
    source, rows = data.parts[part]
    return source.fetch(rows)


def test_digits_are_the_digits_of_scikit_learn():
    data = DigitsDataModule(batch_size=64, labels_per_class=4)
    check_datamodule(data)
    assert data.spec.shape == (1, 8, 8)
    assert data.spec.num_classes == 10
    x = torch.cat([everything(data, part)["x"] for part in ("train", "val", "test")]).double()
    assert len(x) == 1797
    assert x.max() == 255
    assert x.sum() == pytest.approx(np.round(load_digits().data * 255 / 16).sum())
    assert np.bincount(everything(data, "test")["y"]).min() >= 50


@pytest.mark.parametrize("bias", [None, 0.5])
def test_a_number_of_labels_below_one_is_refused(bias: float | None) -> None:
    with pytest.raises(ValueError, match=r"data\.labels_per_class must be at least 1, or null.*got 0"):
        DigitsDataModule(labels_per_class=0, selection_bias=bias).setup()


def test_digits_statistics_are_those_of_the_training_part():
    data = DigitsDataModule()
    data.setup()
    x = everything(data)["x"].double() / 255
    assert data.spec.mean[0] == pytest.approx(float(x.mean()), abs=1e-6)
    assert data.spec.std[0] == pytest.approx(float(x.std(correction=0)), abs=1e-6)


def test_statistics_that_are_given_are_taken():
    measured, data = DigitsDataModule(), DigitsDataModule(mean=[0.25])
    for module in (measured, data):
        module.setup()
    batch = everything(data)
    assert (data.spec.mean, data.spec.std) == ((0.25,), measured.spec.std)
    (clean,) = data.views({**batch, "index": torch.arange(len(batch["x"]))}, "clean")
    torch.testing.assert_close(clean, (batch["x"] / 255 - 0.25) / data.spec.std[0])


@pytest.mark.parametrize(("given", "said"), [
    ({"mean": [0.1, 0.2]}, r"data\.mean=\[0\.1, 0\.2\]: one number for each of 1 channels is needed$"),
    ({"std": [0.0]}, r"data\.std=\[0\.0\]: one number for each of 1 channels is needed, above 0$")])
def test_statistics_that_do_not_fit_are_refused(given: dict, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        DigitsDataModule(**given).setup()


def test_another_seed_gives_another_test_part():
    parts = []
    for seed in (0, 0, 1):
        data = DigitsDataModule(seed=seed)
        data.setup()
        parts.append(everything(data, "test")["x"])
    assert torch.equal(parts[0], parts[1])
    assert not torch.equal(parts[0], parts[2])


class Nothing(L.LightningModule):
    def training_step(self, batch, i):
        return torch.zeros((), requires_grad=True)

    def validation_step(self, batch, i):
        raise AssertionError("there is nothing to validate on")

    def configure_optimizers(self):
        return torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)


def test_an_empty_validation_part_is_no_obstacle():
    data = DigitsDataModule(val_fraction=0.0, batch_size=600)
    trainer = L.Trainer(max_epochs=1, logger=False, enable_checkpointing=False, enable_progress_bar=False,
                        enable_model_summary=False, accelerator="cpu")
    trainer.fit(Nothing(), data)
    assert trainer.global_step == 2


@pytest.mark.parametrize("layout", ["NHWC", "NCHW", "NHW"])
def test_layouts_give_the_same_pictures(tmp_path: Path, layout: str):
    x = np.random.default_rng(0).integers(0, 256, (10, 3, 6, 7), dtype=np.uint8)
    stored = {"NHWC": x.transpose(0, 2, 3, 1), "NCHW": x, "NHW": x[:, 0]}[layout]
    np.savez(tmp_path / "a.npz", train_images=stored, train_labels=np.arange(10) % 2, test_images=stored[:4],
             test_labels=np.arange(4) % 2)
    data = ImageArraysDataModule(tmp_path / "a.npz", batch_size=2, val_fraction=0.0)
    check_datamodule(data)
    assert torch.equal(everything(data)["x"], torch.from_numpy(x if layout != "NHW" else x[:, :1]))


@pytest.mark.parametrize(("dtype", "high"), [(np.float32, 1.0), (np.float64, 255.0), (np.uint8, 1), (bool, 1)])
def test_values_of_any_customary_range_become_bytes(tmp_path: Path, dtype, high):
    base = np.random.default_rng(0).integers(0, 2, (8, 4, 4))
    np.savez(tmp_path / "a.npz", images=(base * high).astype(dtype))
    data = ImageArraysDataModule(tmp_path / "a.npz", val_fraction=0.0)
    data.setup()
    x = everything(data)["x"]
    assert x.dtype == torch.uint8
    assert set(x.unique().tolist()) == {0, 255}
    assert "y" not in everything(data)


@pytest.mark.parametrize(
    "keys",
    [
        ("X_train", "y_train", "X_test", "y_test"),
        ("train_x", "train_y", "valid_x", "valid_y"),
        ("images", "labels", None, None),
        ("x_train", "y_train", None, None),
    ],
)
def test_customary_keys_are_found(tmp_path: Path, keys):
    x, y = np.full((12, 5, 5), 200, np.uint8), np.repeat(["cat", "dog"], 6)
    values = (x, y, x[:4], y[4:8])
    np.savez(tmp_path / "a.npz", **{k: v for k, v in zip(keys, values, strict=True) if k})
    data = ImageArraysDataModule(tmp_path / "a.npz", val_fraction=0.0, test_fraction=1 / 3)
    data.setup()
    assert data.spec.classes == ("cat", "dog")
    assert len(data.parts["test"][1]) == 4
    assert everything(data, "test")["y"].tolist() == [0, 0, 1, 1]


def test_keys_can_be_named_and_rows_chosen(tmp_path: Path):
    x = np.arange(10, dtype=np.uint8).repeat(16).reshape(10, 4, 4) * 20
    np.savez(tmp_path / "a.npz", faces=x, labels=np.zeros(10), mood=np.arange(10) % 3, person=np.arange(10) // 2,
             person_names=np.array(list("abcde")))
    data = ImageArraysDataModule(
        tmp_path / "a.npz", x="faces", y="mood", test_where={"person": ["b", "e"]}, val_fraction=0.0
    )
    data.setup()
    assert (everything(data, "test")["x"][:, 0, 0, 0] // 20).tolist() == [2, 3, 8, 9]
    assert data.spec.num_classes == 3


def test_a_folder_of_arrays_stays_on_disk(tmp_path: Path):
    np.save(tmp_path / "images.npy", np.full((20, 3, 4, 4), 9, np.uint8))
    np.save(tmp_path / "labels.npy", np.arange(20) % 2)
    (tmp_path / "classes.json").write_text('["left", "right"]')
    for path in (tmp_path, tmp_path / "images.npy"):
        data = ImageArraysDataModule(path, batch_size=4)
        check_datamodule(data)
        assert data.spec.classes == ("left", "right")


def test_prefixes_are_balanced(tmp_path: Path):
    y = np.array([0] * 8 + [1] * 4 + [2] * 8)
    np.savez(tmp_path / "a.npz", train_images=np.full((20, 2, 2), 99, np.uint8), train_labels=y,
             test_images=np.full((20, 2, 2), 99, np.uint8), test_labels=y)
    data = ImageArraysDataModule(tmp_path / "a.npz", max_train=9, max_test=6, val_fraction=0.0)
    data.setup()
    assert np.bincount(everything(data)["y"]).tolist() == [3, 3, 3]
    assert np.bincount(everything(data, "test")["y"]).tolist() == [2, 2, 2]


def test_packed_pictures_are_decoded_once(packed: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch):
    data = ImageArraysDataModule(packed, batch_size=2, val_fraction=0.0)
    check_datamodule(data)
    assert data.spec.shape == (3, 8, 8)
    assert data.spec.classes == ("a", "b")
    original = torch.randint(0, 256, (6, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(6))
    decoded = everything(data)["x"]
    assert (decoded.float().mean((1, 2, 3)) - original.float().mean((1, 2, 3))).abs().max() < 3
    monkeypatch.setattr(packed_module, "_decode", lambda *a: pytest.fail("decoded a second time"))
    again = ImageArraysDataModule(packed, val_fraction=0.0)
    again.setup()
    assert torch.equal(everything(again)["x"], decoded)
    assert not list(own_cache.rglob(".*")), "a temporary folder was left behind"


def test_a_damaged_packed_picture_is_named_and_leaves_no_cache(packed: Path, own_cache: Path):
    arrays = dict(np.load(packed))
    arrays["train_bytes"] = np.zeros_like(arrays["train_bytes"])
    np.savez(packed, **arrays)
    with pytest.raises(ValueError, match="picture 0 of train_bytes"):
        ImageArraysDataModule(packed).setup()
    assert not [f for f in own_cache.rglob("*") if f.is_file()]


@pytest.fixture
def uneven(tmp_path: Path) -> Path:
    """A folder of packed JPEG, 12 pictures of as many sizes in three classes, with the leading bytes stored once."""
    generator = torch.Generator().manual_seed(0)
    pictures = [torch.randint(0, 256, (3, 8 + i, 20 - i), dtype=torch.uint8, generator=generator) for i in range(12)]
    encoded = [encode_jpeg(p, 95).numpy() for p in pictures]
    assert all((e[:20] == encoded[0][:20]).all() for e in encoded)
    folder = tmp_path / "uneven"
    folder.mkdir()
    arrays = {"header": encoded[0][:20], "all_bytes": np.concatenate([e[20:] for e in encoded]), "labels": np.arange(12) % 3,
              "all_offsets": np.cumsum([0, *(len(e) - 20 for e in encoded)]), "split": np.array(["train"] * 9 + ["test"] * 3)}
    for key, values in arrays.items():
        np.save(folder / f"{key}.npy", values)
    return folder


def test_packed_pictures_of_any_size_are_decoded_when_fetched(uneven: Path, own_cache: Path):
    data = ImageArraysDataModule(uneven, size=6, batch_size=2, val_fraction=0.0)
    check_datamodule(data)
    assert data.spec.shape == (3, 6, 6)
    assert not list(own_cache.iterdir()), "nothing is unpacked"
    header, stored, offsets = (np.load(uneven / f"{key}.npy") for key in ("header", "all_bytes", "all_offsets"))
    for part, first in (("train", 0), ("test", 9)):
        batch = everything(data, part)
        assert batch["y"].tolist() == [(first + i) % 3 for i in range(len(batch["y"]))]
        for i, x in enumerate(batch["x"]):
            own = np.concatenate([header, stored[offsets[first + i]:offsets[first + i + 1]]])
            assert torch.equal(x, decode_picture(torch.from_numpy(own), 6))


def test_workers_decode_what_the_main_process_decodes(uneven: Path):
    batches = []
    for workers in (0, 2):
        data = ImageArraysDataModule(uneven, size=6, batch_size=2, val_fraction=0.0, num_workers=workers)
        data.setup()
        batches.append(list(data.train_dataloader()))
    assert all(torch.equal(a[key], b[key]) for a, b in zip(*batches, strict=True) for key in ("x", "y", "index", "epoch"))


def test_one_unreadable_packed_picture_is_named_and_replaced(uneven: Path):
    stored, offsets = np.load(uneven / "all_bytes.npy"), np.load(uneven / "all_offsets.npy")
    stored[offsets[4]:offsets[5]] = 0
    np.save(uneven / "all_bytes.npy", stored)
    data = ImageArraysDataModule(uneven, size=6, val_fraction=0.0)
    with pytest.warns(UserWarning, match=r"picture 4 of all_bytes cannot be read.*1 of at most 10"):
        data.setup()
    x = everything(data)["x"]
    assert any(torch.equal(x[4], x[i]) for i in (1, 7)), "another of its class stands in"
    with pytest.raises(ValueError, match=r"picture 4 of all_bytes.*data\.max_bad=0"):
        ImageArraysDataModule(uneven, size=6, max_bad=0, val_fraction=0.0).setup()


def test_uneven_packed_pictures_cannot_be_unpacked(uneven: Path, picture_folder):
    with pytest.raises(ValueError, match=r"picture 1 of all_bytes is \(3, 9, 19\).*data\.size=PIXELS"):
        ImageArraysDataModule(uneven).setup()
    np.savez(uneven / "a.npz", images=np.full((4, 4, 4), 9, np.uint8))
    with pytest.raises(ValueError, match=r"data\.size=6 is for packed pictures"):
        ImageArraysDataModule(uneven / "a.npz", size=6).setup()
    with pytest.raises(ValueError, match=r"data\.size=0"):
        ImageArraysDataModule(uneven, size=0)


@pytest.mark.parametrize(
    ("arrays", "options", "message"),
    [
        ({"foo": np.zeros((4, 4, 4), np.uint8)}, {}, r"foo \(4, 4, 4\).*data\.x=KEY"),
        ({"images": np.zeros((4, 4, 4), np.uint8)}, {"x": "fotos"}, "no key fotos"),
        ({"images": np.zeros((4, 4, 4), np.uint8)}, {"y": "kinds"}, r"no labels data\.y=kinds"),
        ({"images": np.zeros((4, 7, 7, 7), np.uint8)}, {}, r"\(4, 7, 7, 7\)"),
        ({"images": np.full((4, 4, 4), -3.0)}, {}, "values from -3.0"),
        ({"images": np.full((4, 4, 4), np.nan)}, {}, "values from nan"),
        (
            {"images": np.full((4, 4, 4), 9, np.uint8), "labels": np.zeros((4, 4))},
            {"y": "labels"},
            "one label for each of 4",
        ),
        ({"images": np.full((4, 4, 4), 9, np.uint8)}, {"test_where": {"who": [1]}}, "'who'"),
        (
            {"images": np.full((4, 4, 4), 9, np.uint8), "who": np.ones(4)},
            {"test_where": {"who": [7]}},
            "selects 0 of 4",
        ),
        ({"images": np.full((4, 4, 4), 9, np.uint8)}, {"test_fraction": 1.5}, r"data\.test_fraction"),
        ({"images": np.full((4, 4, 4), 9, np.uint8), "split": np.array(list("abcd"))}, {}, "'split' holds 'a'"),
    ],
)
def test_bad_arrays_are_explained(tmp_path: Path, arrays, options, message):
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(ValueError, match=message):
        ImageArraysDataModule(tmp_path / "a.npz", **options).setup()


def test_missing_and_damaged_files_are_named(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match=r"data\.path=.*absent"):
        ImageArraysDataModule(tmp_path / "absent.npz").setup()
    with pytest.raises(FileNotFoundError, match="prepare_arrays"):
        ImageArraysDataModule(tmp_path).setup()
    (tmp_path / "broken.npz").write_bytes(b"PK\x03\x04 not an archive")
    with pytest.raises(ValueError, match=r"broken\.npz"):
        ImageArraysDataModule(tmp_path / "broken.npz").setup()
    (tmp_path / "images.npy").write_bytes(b"nonsense")
    with pytest.raises(ValueError, match=r"images\.npy"):
        ImageArraysDataModule(tmp_path).setup()
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(ValueError, match=r"must be an \.npz"):
        ImageArraysDataModule(tmp_path / "a.txt").setup()


def test_pickled_arrays_are_refused(tmp_path: Path):
    np.savez(tmp_path / "a.npz", images=np.array([{}, {}], dtype=object))
    with pytest.raises(ValueError, match="images"):
        ImageArraysDataModule(tmp_path / "a.npz").setup()


def test_folders_of_classes_and_parts(picture_folder):
    root = picture_folder("train/cat", "train/dog", "test/cat", "test/dog")
    data = ImageFolderDataModule(root, size=6, batch_size=2, val_fraction=0.2)
    check_datamodule(data)
    assert data.spec.shape == (3, 6, 6)
    assert data.spec.classes == ("cat", "dog")
    assert {part: len(rows) for part, (_, rows) in data.parts.items()} == {"train": 8, "val": 2, "test": 10}


def test_folders_of_classes_alone_hold_out_a_test(picture_folder):
    data = ImageFolderDataModule(
        picture_folder("cat", "dog"), size=6, batch_size=2, test_fraction=0.4, val_fraction=0.0
    )
    data.setup()
    assert everything(data, "test")["y"].tolist() == [0, 0, 1, 1]


def test_a_flat_folder_has_no_labels(picture_folder):
    data = ImageFolderDataModule(picture_folder("."), size=4, batch_size=2, val_fraction=0.0)
    check_datamodule(data, semi=False)
    assert data.spec.classes == ()


def test_unreadable_pictures_are_replaced_by_one_of_their_class(picture_folder):
    root = picture_folder("train/cat", "train/dog", "test/cat", "test/dog")
    (root / "train/dog/3.png").write_bytes(b"not a picture")
    data = ImageFolderDataModule(root, size=6, val_fraction=0.0)
    with pytest.warns(UserWarning, match=r"dog.3\.png cannot be read"):
        data.setup()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        x = everything(data)["x"]
    assert any(torch.equal(x[8], x[i]) for i in (5, 6, 7, 9))
    other = ImageFolderDataModule(root, size=6, val_fraction=0.0)
    with pytest.warns(UserWarning, match="1 of at most 10"):
        other.setup()
    assert torch.equal(everything(other)["x"], x)


def test_too_many_unreadable_pictures_are_an_error(picture_folder):
    root = picture_folder("cat", "dog")
    for i in (1, 2):
        (root / f"cat/{i}.png").write_bytes(b"")
    with pytest.warns(UserWarning, match="cannot be read"), pytest.raises(ValueError, match=r"data\.max_bad=1"):
        ImageFolderDataModule(root, size=6, max_bad=1, val_fraction=0.0, test_fraction=0.0).setup()


def test_folder_mistakes_are_explained(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match=r"data\.path="):
        ImageFolderDataModule(tmp_path / "absent").setup()
    with pytest.raises(FileNotFoundError, match=r"\.jpg"):
        ImageFolderDataModule(tmp_path).setup()
    with pytest.raises(ValueError, match=r"data\.size=0"):
        ImageFolderDataModule(tmp_path, size=0)


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "stl10", "mnist"])
def test_nothing_is_downloaded_unasked(tmp_path: Path, name: str):
    data = TorchvisionDataModule(name, tmp_path)
    data.prepare_data()
    with pytest.raises(FileNotFoundError, match=r"data\.download=true"):
        data.setup()


def test_torchvision_reads_mnist_files(tmp_path: Path):
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for part, n in (("train", 40), ("t10k", 20)):
        pixels, labels = rng.integers(0, 256, (n, 28, 28), dtype=np.uint8), (np.arange(n) % 10).astype(np.uint8)
        for kind, head, values in (("images-idx3", struct.pack(">IIII", 2051, n, 28, 28), pixels),
                                   ("labels-idx1", struct.pack(">II", 2049, n), labels)):
            (raw / f"{part}-{kind}-ubyte").write_bytes(head + values.tobytes())
            (raw / f"{part}-{kind}-ubyte.gz").write_bytes(gzip.compress(head + values.tobytes()))
    data = TorchvisionDataModule("mnist", tmp_path, batch_size=8)
    check_datamodule(data)
    assert data.spec.shape == (1, 28, 28)
    assert data.spec.num_classes == 10


def test_an_unknown_set_is_refused(tmp_path: Path):
    with pytest.raises(ValueError, match="imagenet"):
        TorchvisionDataModule("imagenet", tmp_path)
