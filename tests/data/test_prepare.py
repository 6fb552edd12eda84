from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch

from datamodules.images.image_arrays import ImageArraysDataModule
from datamodules.images.image_folder import ImageFolderDataModule
from datamodules.speech.speech_arrays import SpeechArraysDataModule
from datamodules.speech.speech_folder import SpeechFolderDataModule
from ssl_suite.data.cache import new_folder
from ssl_suite.testing.data import check_datamodule

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "prepare_arrays.py"


@pytest.fixture
def main():
    """The script's entry."""
    spec = importlib.util.spec_from_file_location("prepare_arrays", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main


def test_prepared_pictures_equal_those_of_the_folder(picture_folder, tmp_path: Path, main):
    root = picture_folder("train/cat", "train/dog", "test/cat", "test/dog")
    assert main(["images", str(root), str(tmp_path / "arrays"), "--size", "6"]) == 0
    fast = ImageArraysDataModule(tmp_path / "arrays", batch_size=2, val_fraction=0.0)
    check_datamodule(fast)
    slow = ImageFolderDataModule(root, size=6, val_fraction=0.0)
    slow.setup()
    assert fast.spec.classes == slow.spec.classes == ("cat", "dog")
    for part in ("train", "test"):
        a, b = (data.parts[part][0].fetch(data.parts[part][1]) for data in (fast, slow))
        assert torch.equal(a["x"], b["x"])
        assert torch.equal(a["y"], b["y"])


def test_packed_pictures_equal_those_of_the_folder(picture_folder, tmp_path: Path, main, capsys):
    root = picture_folder("train/cat", "train/dog", "test/cat", "test/dog")
    (root / "train/cat/1.png").write_bytes(b"no picture")
    assert main(["packed", str(root), str(tmp_path / "packed")]) == 1
    assert "1.png" in capsys.readouterr().err
    with pytest.warns(UserWarning, match=r"1\.png"):
        assert main(["packed", str(root), str(tmp_path / "packed"), "--max-bad", "1"]) == 0
    assert "data=image_arrays data.size=64" in capsys.readouterr().out
    (root / "train/cat/1.png").unlink()
    packed = ImageArraysDataModule(tmp_path / "packed", size=6, val_fraction=0.0)
    files = ImageFolderDataModule(root, size=6, val_fraction=0.0)
    for data in (packed, files):
        data.setup()
    assert packed.spec.classes == files.spec.classes == ("cat", "dog")
    for part in ("train", "test"):
        a, b = (data.parts[part][0].fetch(data.parts[part][1]) for data in (packed, files))
        assert torch.equal(a["x"], b["x"])
        assert torch.equal(a["y"], b["y"])


def test_prepared_recordings_equal_those_of_the_folder(tmp_path: Path, main):
    soundfile = pytest.importorskip("soundfile", reason="reading recordings needs the extra 'speech'")
    rng = np.random.default_rng(0)
    for i in range(8):
        file = tmp_path / "calls" / "ab"[i % 2] / f"{i}.wav"
        file.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(file, (rng.normal(0, 0.1, 300 + i) * 32767).astype(np.int16), 8000)
    assert main(["audio", str(tmp_path / "calls"), str(tmp_path / "arrays"), "--rate", "4000"]) == 0
    fast = SpeechArraysDataModule(tmp_path / "arrays", batch_size=2, val_fraction=0.0)
    check_datamodule(fast)
    slow = SpeechFolderDataModule(tmp_path / "calls", rate=4000, val_fraction=0.0)
    slow.setup()
    assert fast.spec.rate == 4000
    for part in ("train", "test"):
        a, b = (data.parts[part][0].fetch(data.parts[part][1]) for data in (fast, slow))
        assert all(torch.equal(a[key], b[key]) for key in ("x", "y", "length"))


def test_a_damaged_file_leaves_nothing_behind(picture_folder, tmp_path: Path, main, capsys):
    root = picture_folder("cat", "dog")
    (root / "cat" / "2.png").write_bytes(b"")
    assert main(["images", str(root), str(tmp_path / "out" / "arrays"), "--size", "6"]) == 1
    assert "2.png" in capsys.readouterr().err
    assert not list((tmp_path / "out").iterdir())
    with pytest.warns(UserWarning, match=r"2\.png"):
        assert main(["images", str(root), str(tmp_path / "out" / "arrays"), "--size", "6", "--max-bad", "1"]) == 0
    data = ImageArraysDataModule(tmp_path / "out" / "arrays", val_fraction=0.0)
    data.setup()
    assert sum(len(rows) for _, rows in data.parts.values()) == 9


def test_mistakes_end_in_one_line(tmp_path: Path, main, capsys):
    assert main(["images", str(tmp_path / "absent"), str(tmp_path / "arrays")]) == 1
    assert "does not exist" in capsys.readouterr().err
    (tmp_path / "taken").mkdir()
    (tmp_path / "a.png").write_bytes(b"")
    assert main(["images", str(tmp_path), str(tmp_path / "taken")]) == 1
    assert "exists" in capsys.readouterr().err


def test_help_names_the_layout(main, capsys):
    with pytest.raises(SystemExit):
        main(["audio", "--help"])
    assert "--rate" in capsys.readouterr().out


def test_a_finished_folder_is_not_replaced(tmp_path: Path):
    target = tmp_path / "set"
    with new_folder(target) as work:
        (work / "a").write_text("first")
    with new_folder(target) as work:
        (work / "a").write_text("second")
    assert (target / "a").read_text() == "first"
    assert [f.name for f in tmp_path.iterdir()] == ["set"]
