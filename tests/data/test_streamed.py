"""Streamed sets give what the folder they were made of gives."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from datamodules.images.image_folder import ImageFolderDataModule
from datamodules.images.streamed_images import StreamedImagesDataModule
from datamodules.speech.speech_folder import SpeechFolderDataModule
from datamodules.speech.streamed_speech import StreamedSpeechDataModule
from ssl_suite.data.prepare import prepare_streamed
from ssl_suite.data.streamed import Streamed
from ssl_suite.testing.data import check_datamodule


@pytest.fixture
def litdata():
    """The engine."""
    return pytest.importorskip("litdata", reason="streamed sets need the extra 'streaming'")


@pytest.fixture
def streamed(litdata, picture_folder, tmp_path: Path) -> Path:
    """A set of 40 pictures in about 7 chunks, made of ``tmp_path/pictures``."""
    root = picture_folder("train/cat", "train/dog", "test/cat", "test/dog", n=10)
    assert prepare_streamed(root, tmp_path / "set", chunk_bytes=2500) == 40
    return tmp_path / "set"


def in_some_order(data, part: str) -> list[tuple[int, bytes]]:
    """Class and content of all samples of a part, sorted."""
    batch = data.parts[part][0].fetch(data.parts[part][1])
    lengths = batch.get("length", torch.full((len(batch["x"]),), batch["x"].shape[-1]))
    return sorted((int(y), x[..., :t].numpy().tobytes()) for x, y, t in zip(batch["x"], batch["y"], lengths, strict=True))


@pytest.mark.parametrize("where", ["", "local:"])
def test_pictures_equal_those_of_the_folder(streamed: Path, where: str):
    data = StreamedImagesDataModule(f"{where}{streamed}", size=6, batch_size=4, val_fraction=0.0)
    check_datamodule(data)
    folder = ImageFolderDataModule(streamed.parent / "pictures", size=6, val_fraction=0.0)
    folder.setup()
    assert data.spec.classes == ("cat", "dog")
    for part in ("train", "test"):
        assert in_some_order(data, part) == in_some_order(folder, part)
    assert data.spec.mean == pytest.approx(folder.spec.mean)


def test_recordings_equal_those_of_the_list(litdata, tmp_path: Path):
    soundfile = pytest.importorskip("soundfile", reason="reading recordings needs the extra 'speech'")
    rng, rows = np.random.default_rng(0), ["path\tlabel\tspeaker"]
    for i in range(12):
        wave = (rng.normal(0, 0.1, 600 + 10 * i) * 32767).astype(np.int16)
        soundfile.write(tmp_path / f"{i}.flac", wave, 8000 if i % 4 else 4000)
        rows.append(f"{i}.flac\t{'ab'[i % 2]}\t{'xyz'[i % 3]}")
    (tmp_path / "list.tsv").write_text("\n".join(rows))
    prepare_streamed(tmp_path / "list.tsv", tmp_path / "set", chunk_bytes=3000)
    options = {"rate": 4000, "test_where": {"speakers": ["z"]}, "val_fraction": 0.0, "batch_size": 2}
    data = StreamedSpeechDataModule(tmp_path / "set", **options)
    check_datamodule(data)
    folder = SpeechFolderDataModule(tmp_path / "list.tsv", **options)
    folder.setup()
    for part in ("train", "test"):
        assert in_some_order(data, part) == in_some_order(folder, part)
    with pytest.raises(ValueError, match="recordings"):
        StreamedImagesDataModule(tmp_path / "set").setup()


@pytest.mark.parametrize("where", ["", "local:"])
def test_workers_and_a_later_start_give_the_same_batches(streamed: Path, where: str):
    def batches(workers: int, position: int = 0) -> list[dict[str, torch.Tensor]]:
        data = StreamedImagesDataModule(f"{where}{streamed}", size=6, batch_size=4, val_fraction=0.0, num_workers=workers)
        data.setup()
        data.seek(position)
        return list(data.train_dataloader())

    whole = batches(0)
    assert len(whole) == 5
    for other, first in ((batches(2), 0), (batches(0, 2), 2), (batches(2, 3), 3)):
        assert len(other) == len(whole) - first
        assert all(torch.equal(a[k], b[k]) for a, b in zip(other, whole[first:], strict=True) for k in ("x", "y", "index", "epoch"))


def test_batches_are_read_from_few_chunks(streamed: Path):
    data = StreamedImagesDataModule(streamed, size=6, batch_size=4, val_fraction=0.0)
    data.setup()
    source = data.parts["train"][0]
    assert source.blocks.tolist() == source.pictures.blocks[source.pictures.rows].tolist()
    assert 4 < len(np.unique(source.pictures.blocks)) < 20


def test_a_set_cannot_run_code(litdata, tmp_path: Path):
    from litdata.streaming import Cache

    class Payload:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "touched",))

    for part in ("items", "columns"):
        cache = Cache(str(tmp_path / "set" / part), chunk_size=4)
        cache[0] = Payload()
        cache.done()
        cache.merge()
    with pytest.raises(ValueError, match="pickle"):
        Streamed(tmp_path / "set")
    assert not (tmp_path / "touched").exists()


def test_mistakes_are_explained(litdata, picture_folder, tmp_path: Path):
    with pytest.raises(FileNotFoundError, match=r"data\.path="):
        StreamedImagesDataModule(tmp_path / "absent").setup()
    with pytest.raises(FileNotFoundError, match=r"prepare_arrays\.py streamed"):
        StreamedImagesDataModule(tmp_path).setup()
    root = picture_folder("cat")
    (root / "cat" / "a.wav").write_bytes(b"")
    with pytest.raises(ValueError, match="a set of each"):
        prepare_streamed(root, tmp_path / "set")
    assert not (tmp_path / "set").exists()


def test_a_missing_engine_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "litdata", None)
    (tmp_path / "items").mkdir()
    (tmp_path / "items" / "index.json").write_text("{}")
    with pytest.raises(ImportError, match=r'pip install "ssl-suite\[streaming\]"'):
        StreamedImagesDataModule(tmp_path).setup()
