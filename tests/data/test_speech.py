from __future__ import annotations

import importlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from datamodules.speech.speech_arrays import SpeechArraysDataModule
from datamodules.speech.speech_folder import SpeechFolderDataModule
from datamodules.speech.spoken import SpokenCorpusDataModule
from ssl_suite.data.synthesis import Corpus, plan, spoken_corpus
from ssl_suite.data.text import build_vocabulary, encode
from ssl_suite.testing.data import check_datamodule

soundfile = pytest.importorskip("soundfile", reason="reading recordings needs the extra 'speech'")


def everything(data, part="train"):
    source, rows = data.parts[part]
    return source.fetch(rows)


def tone(n: int, rate: int = 8000, hertz: float = 200.0) -> np.ndarray:
    return (8000 * np.sin(2 * np.pi * hertz * np.arange(n) / rate)).astype(np.int16)


@pytest.fixture
def pieces(tmp_path: Path) -> Path:
    """Ten recordings end to end, two speakers, five takes."""
    lengths = np.arange(400, 500, 10)
    np.savez(
        tmp_path / "pieces.npz",
        audio=np.concatenate([tone(n) for n in lengths]),
        offsets=np.cumsum([0, *lengths]),
        rate=8000,
        labels=np.arange(10) % 2,
        speakers=np.arange(10) // 5,
        speaker_names=np.array(["ann", "bob"]),
        indices=np.arange(10) % 5,
        texts=np.array([f"Word {chr(97 + i % 3)}" for i in range(10)]),
    )
    return tmp_path / "pieces.npz"


@pytest.mark.parametrize(
    ("where", "test"),
    [
        ({"indices": [0, 1]}, [0, 1, 5, 6]),
        ({"speakers": ["bob"]}, [5, 6, 7, 8, 9]),
        ({"speakers": [0]}, [0, 1, 2, 3, 4]),
        ({"speakers": ["ann"], "indices": [4]}, [4]),
    ],
)
def test_rows_of_the_test_part_can_be_chosen(pieces: Path, where, test):
    data = SpeechArraysDataModule(pieces, test_where=where, batch_size=2, val_fraction=0.0)
    data.setup()
    assert everything(data, "test")["length"].tolist() == [400 + 10 * i for i in test]


def test_pieces_come_out_as_they_went_in(pieces: Path):
    data = SpeechArraysDataModule(pieces, test_where={"indices": [0]}, batch_size=2, val_fraction=0.0)
    check_datamodule(data)
    assert (data.spec.rate, data.spec.classes, data.spec.vocabulary) == (8000, ("0", "1"), ())
    batch = everything(data)
    assert batch["x"].dtype == torch.int16
    for row, n in zip(batch["x"].numpy(), batch["length"].tolist(), strict=True):
        assert np.array_equal(row[:n], tone(n))
        assert not row[n:].any()


def test_texts_become_symbols(pieces: Path):
    data = SpeechArraysDataModule(pieces, target="text", test_where={"indices": [0]}, batch_size=4, val_fraction=0.0)
    check_datamodule(data)
    assert data.spec.classes == ()
    assert data.spec.vocabulary == tuple(" abcdorw")
    batch = everything(data)
    text = "".join(data.spec.vocabulary[s] for s in batch["y"][0, : batch["y_length"][0]])
    assert text == "word b"


def test_transcripts_of_unequal_length_are_padded_with_minus_one(tmp_path: Path):
    np.savez(tmp_path / "a.npz", audio=np.ones((4, 50), np.int16), texts=np.array(["a", "a b", "b", "b"]), rate=8000,
             split=np.array(["train", "train", "dev", "test"]))
    data = SpeechArraysDataModule(tmp_path / "a.npz", units="phones")
    data.setup()
    assert everything(data)["y"].tolist() == [[0, -1], [0, 1]]
    assert everything(data)["y_length"].tolist() == [1, 2]
    assert [len(data.parts[p][1]) for p in ("train", "val", "test")] == [2, 1, 1]


def test_resampling_keeps_pitch_and_duration(pieces: Path):
    data = SpeechArraysDataModule(pieces, rate=16000, test_where={"indices": [0]}, val_fraction=0.0)
    data.setup()
    source, rows = data.parts["train"]
    batch = source.fetch(rows)
    assert data.spec.rate == 16000
    assert batch["length"].tolist() == [2 * (400 + 10 * i) for i in (1, 2, 3, 4, 6, 7, 8, 9)]
    assert batch["length"].tolist() == source.lengths.tolist()
    inner = slice(100, 700)
    wanted = tone(900, 16000)[inner].astype(float)
    assert np.abs(batch["x"][0].numpy()[inner] - wanted).max() < 0.01 * 8000


def test_buckets_hold_no_more_than_asked(pieces: Path):
    data = SpeechArraysDataModule(pieces, test_where={"indices": [0]}, frames=1200, val_fraction=0.0)
    data.setup()
    assert all(batch["x"].numel() <= 1200 for batch in data.train_dataloader())


@pytest.mark.parametrize(
    ("arrays", "options", "message"),
    [
        ({"audio": np.ones((4, 50), np.int16)}, {}, r"data\.rate="),
        ({"audio": np.ones((4, 50, 2), np.int16), "rate": 8000}, {}, "no waveforms"),
        ({"noise": np.ones((4, 50), np.int16), "rate": 8000}, {}, r"noise \(4, 50\)"),
        ({"audio": np.ones((4, 50), np.int16), "rate": 8000}, {"target": "text"}, "no text labels"),
        (
            {"audio": np.ones((4, 50), np.int16), "rate": 8000, "texts": np.array(["a"] * 4)},
            {"units": "syllables"},
            "syllables",
        ),
        ({"audio": np.ones((4, 50), np.int16), "rates": np.array([8000, 8000, 9000, 8000])}, {}, "several rates"),
        ({"audio": np.ones(9, np.int16), "offsets": np.array([0, 4, 4, 9]), "rate": 8000}, {}, "is empty"),
    ],
)
def test_bad_arrays_are_explained(tmp_path: Path, arrays, options, message):
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(ValueError, match=message):
        SpeechArraysDataModule(tmp_path / "a.npz", **options).setup()


@pytest.fixture
def recordings(tmp_path: Path) -> Path:
    """Six recordings, mono WAV and stereo FLAC of two rates, in folders of two classes, beside two lists of them."""
    root = tmp_path / "recordings"
    rows = []
    for i in range(6):
        word, rate = ("no", "yes")[i % 2], (8000, 16000)[i % 2]
        x = tone(rate // 10 + i, rate)
        file = root / word / f"{i}.{'flac' if i == 5 else 'wav'}"
        file.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(file, np.stack([x, x], 1) if i == 5 else x, rate, subtype="PCM_16")
        rows.append({"path": str(file.relative_to(root)), "text": word, "speaker": f"s{i // 2}",
                     "split": "test" if i > 3 else "train"})
    (root / "list.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (root / "list.tsv").write_text("\n".join(["\t".join(rows[0]), *("\t".join(r.values()) for r in rows)]))
    return root


def test_folders_of_recordings(recordings: Path):
    data = SpeechFolderDataModule(recordings, rate=16000, batch_size=2, test_fraction=1 / 3, val_fraction=0.0)
    check_datamodule(data)
    assert data.spec.classes == ("no", "yes")
    assert {part: len(rows) for part, (_, rows) in data.parts.items()} == {"train": 4, "val": 0, "test": 2}
    for part in ("train", "test"):
        source, rows = data.parts[part]
        assert source.fetch(rows)["length"].tolist() == source.lengths.tolist()


@pytest.mark.parametrize("name", ["list.jsonl", "list.tsv"])
def test_lists_of_recordings(recordings: Path, name: str):
    data = SpeechFolderDataModule(recordings / name, batch_size=2, val_fraction=0.0)
    check_datamodule(data)
    assert data.spec.vocabulary == ("e", "n", "o", "s", "y")
    assert [len(data.parts[p][1]) for p in ("train", "test")] == [4, 2]
    other = SpeechFolderDataModule(recordings / name, test_where={"speakers": ["s0"]}, val_fraction=0.0)
    other.setup()
    assert len(other.parts["test"][1]) == 2


def test_unreadable_recordings_are_left_out_or_refused(recordings: Path):
    (recordings / "no" / "bad.wav").write_bytes(b"not a recording")
    data = SpeechFolderDataModule(recordings, val_fraction=0.0, test_fraction=1 / 3)
    with pytest.warns(UserWarning, match=r"bad\.wav"):
        data.setup()
    assert sum(len(rows) for _, rows in data.parts.values()) == 6
    with pytest.raises(ValueError, match=r"data\.max_bad=0"):
        SpeechFolderDataModule(recordings, max_bad=0).setup()


def test_list_mistakes_are_explained(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match=r"data\.path="):
        SpeechFolderDataModule(tmp_path / "absent").setup()
    with pytest.raises(FileNotFoundError, match=r"\.wav"):
        SpeechFolderDataModule(tmp_path).setup()
    for text, message in (("{broken", "no readable list"), ('{"file": "a.wav"}', "column 'path'"),
                          ('{"path": "a.wav", "text": "a"}\n{"path": "b.wav"}', "entry 2 .* lacks the column 'text'")):
        (tmp_path / "list.jsonl").write_text(text)
        with pytest.raises(ValueError, match=message):
            SpeechFolderDataModule(tmp_path / "list.jsonl").setup()
    (tmp_path / "list.jsonl").write_text('{"path": "gone.wav", "text": "a"}')
    with pytest.raises(FileNotFoundError, match=r"gone\.wav"):
        SpeechFolderDataModule(tmp_path / "list.jsonl").setup()


def test_symbols_unknown_to_the_vocabulary_are_told():
    vocabulary = build_vocabulary(["ab  a"], "chars")
    assert vocabulary == (" ", "a", "b")
    with pytest.warns(UserWarning, match=r"'c' \(2\)"):
        rows = encode(["CAB c"], vocabulary, "chars")
    assert rows[0].tolist() == [1, 2, 0]
    with pytest.raises(ValueError, match="empty"):
        build_vocabulary(["", " "], "chars")


def test_the_plan_keeps_voices_apart():
    items = plan(Corpus("sentences", utterances=400))
    voices = {split: {item["voice"] for item in items if item["split"] == split} for split in ("train", "test")}
    assert not voices["train"] & voices["test"]
    assert len(voices["train"]) > 40
    assert sum(item["split"] == "test" for item in items) == 100
    assert items == plan(Corpus("sentences", utterances=400))
    assert items != plan(Corpus("sentences", utterances=400, seed=1))


def test_spoken_words(own_cache: Path, monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("espeakng_loader", reason="speaking needs the extra 'speech-synth'")
    request = Corpus("words", utterances=40, test_fraction=0.5)
    first = spoken_corpus(request)
    assert json.loads((first / "meta.json").read_text())["espeak"].startswith("1.")
    monkeypatch.setenv("SSL_SUITE_CACHE", str(own_cache / "other"))
    second = spoken_corpus(request)
    assert first != second
    assert {f.name for f in first.iterdir()} == {f.name for f in second.iterdir()}
    for file in first.glob("*.npy"):
        assert np.array_equal(np.load(file), np.load(second / file.name)), (
            f"{file.name} differs between two generations"
        )
    data = SpokenCorpusDataModule(utterances=40, test_fraction=0.5, batch_size=8, val_fraction=0.0)
    check_datamodule(data)
    assert data.spec.num_classes == 20
    assert data.spec.rate == 16000
    assert data.spec.vocabulary == ()
    x = everything(data)["x"].float()
    assert 15000 < x.abs().max() < 17000


@pytest.mark.filterwarnings("ignore:symbols that the training texts lack")
def test_spoken_sentences():
    pytest.importorskip("espeakng_loader", reason="speaking needs the extra 'speech-synth'")
    for target in ("letters", "phones"):
        data = SpokenCorpusDataModule(target=target, utterances=12, snr_db=None, batch_size=4, val_fraction=0.0)
        data.setup()
        assert data.spec.classes == ()
        assert (" " in data.spec.vocabulary) == (target == "letters")
        batch = everything(data)
        assert (batch["length"] > 2 * 400 * batch["y_length"]).all(), "fewer than two 25 ms frames for a symbol"


def test_spoken_corpus_mistakes_are_explained():
    with pytest.raises(ValueError, match=r"data\.target=syllables"):
        SpokenCorpusDataModule(target="syllables")
    with pytest.raises(ValueError, match=r"data\.utterances=1"):
        plan(Corpus(utterances=1))


@pytest.mark.parametrize(("module", "extra"), [("espeakng_loader", "speech-synth"), ("soundfile", "speech")])
def test_a_missing_extra_is_named(recordings: Path, monkeypatch: pytest.MonkeyPatch, module: str, extra: str):
    real = importlib.import_module

    def without(name: str, *rest):
        if name == module:
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(importlib, "import_module", without)
    data = SpokenCorpusDataModule(utterances=4) if extra == "speech-synth" else SpeechFolderDataModule(recordings)
    with pytest.raises(ImportError, match=rf"ssl-suite\[{extra}\]"):
        data.setup()


def test_some_transcripts_of_all(pieces: Path) -> None:
    data = SpeechArraysDataModule(pieces, target="text", labels=3, test_fraction=0.2, val_fraction=0.0, batch_size=3)
    data.setup()
    seen = {int(i) for batch in data.train_dataloader() for i in batch["index"]}
    assert len(seen) == 3
    data.form = "unlabeled"
    assert len({int(i) for batch in data.train_dataloader() for i in batch["index"]}) > 3
    with pytest.raises(ValueError, match=r"data\.labels_per_class=1 needs class labels.*data\.labels"):
        SpeechArraysDataModule(pieces, target="text", labels_per_class=1).setup()
