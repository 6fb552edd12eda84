"""The stages of self-training for masks: what a teacher writes, what is reliable, and that every stage starts anew."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from ssl_suite.config import ConfigError
from ssl_suite.run import load_run
from ssl_suite.summary import write_summary
from tests.conftest import ROOT
from tests.runs import masks, run
from tests.unit.test_summary import GOOD

sys.path.insert(0, str(ROOT / "scripts"))
import self_training_masks as stages


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("masks")
    return run(folder / "teacher", "model=segmentation", "data=segmentation_arrays", f"data.path={masks(folder)}", "data.labels=4",
               "callbacks.checkpoint.every_n_train_steps=1", "callbacks.checkpoint.every_n_epochs=null",
               "callbacks.checkpoint.save_on_train_epoch_end=false", "trainer.max_epochs=1")


def test_a_teacher_labels_every_pixel_of_every_other_picture_and_a_student_starts_anew(teacher: Path):
    file = stages.guess(teacher, teacher.parent / "pseudo.npz")
    made, loaded = dict(np.load(file)), load_run(teacher)
    data, index = stages.unlabelled(loaded)
    assert made["index"].tolist() == index.tolist()
    assert not set(index) & set(data.labeled)
    assert made["target"].shape == (len(index), 16, 16)
    assert made["target"].max() < 3                                                   # no threshold: every pixel has a class
    assert ((made["confidence"] > 1 / 3) & (made["confidence"] <= 1.0)).all()
    student = run(teacher.parent / "student", "model=fixmatch_segmentation", "data=segmentation_arrays", "data.labels=4",
                  f"data.path={teacher.parent / 'masks.npz'}", f"data.pseudo_masks={file}", "seed=1000", "data.seed=0",
                  "model.lambda_u=0", "optimizer.lr=0.0")
    ours, theirs = load_run(student).method, loaded.method
    assert not torch.equal(ours.head.weight, theirs.head.weight)
    assert len(load_run(student).method.state_dict()) == len(theirs.state_dict())


def test_the_stablest_half_is_kept_and_stays_when_the_rest_is_guessed_anew(teacher: Path):
    loaded = load_run(teacher)
    data, index = stages.unlabelled(loaded)
    if len(list((teacher / "checkpoints").glob("*.ckpt"))) < 2:
        pytest.fail("the teacher should have kept its checkpoints")
    score = stages.reliability(loaded, data, index)
    assert ((score >= 0) & (score <= 1)).all()
    first = stages.guess(teacher, teacher.parent / "reliable.npz", 0.5)
    kept = np.load(first)["kept"]
    assert kept.sum() == round(0.5 * len(index))
    assert score[kept].min() >= score[~kept].max()
    spoilt = dict(np.load(first))
    spoilt["target"][:] = 2
    np.savez(teacher.parent / "spoilt.npz", **spoilt)
    both = np.load(stages.guess(teacher, teacher.parent / "mixed.npz", base=teacher.parent / "spoilt.npz"))
    assert (both["target"][kept] == 2).all()
    assert np.array_equal(both["target"][~kept], np.load(first)["target"][~kept])
    assert both["kept"].all()


def test_one_checkpoint_is_not_enough(teacher: Path):
    loaded = load_run(teacher)
    loaded.folder = teacher.parent
    with pytest.raises(ConfigError, match=r"kept 0 checkpoints.*save_top_k=-1"):
        stages.reliability(loaded, None, np.arange(2))


def test_a_report_stands_beside_the_guesses_and_alone_reads_the_true_masks(teacher: Path, monkeypatch: pytest.MonkeyPatch):
    loaded = load_run(teacher)
    data, index = stages.unlabelled(loaded)
    made = np.load(stages.guess(teacher, teacher.parent / "half.npz", 0.5))
    told = json.loads((teacher.parent / "half_report.json").read_text())
    truth, kept = data.parts["train"][0].masks[index], made["kept"]
    right = np.where(truth == 255, np.nan, made["target"] == truth)  # a border of each picture has no class
    assert (told["teacher"], told["pictures"], told["kept"]) == ("teacher", len(index), kept.sum())
    assert told["classes"] == pytest.approx({name: (made["target"][kept] == c).mean() for c, name in
                                             enumerate(("sky", "road", "car"))})
    assert told["mean_confidence"] == pytest.approx(made["confidence"][kept].mean())
    assert told["mean_reliability"] == pytest.approx(stages.reliability(loaded, data, index)[kept].mean())
    assert (told["accuracy_pool"], told["accuracy_kept"]) == pytest.approx((np.nanmean(right), np.nanmean(right[kept])))

    def hidden(run):
        data, index = unlabelled(run)
        source = data.parts["train"][0]
        source.masks = source.masks.copy()
        source.masks[index] = 255
        return data, index

    unlabelled = stages.unlabelled
    monkeypatch.setattr(stages, "unlabelled", hidden)
    blind = np.load(stages.guess(teacher, teacher.parent / "blind.npz", 0.5))
    assert all(np.array_equal(blind[key], made[key]) for key in made.files)
    other = json.loads((teacher.parent / "blind_report.json").read_text())
    assert other == {**told, "accuracy_pool": None, "accuracy_kept": None}


def test_guesses_without_a_report_are_made_again(teacher: Path):
    file = teacher.parent / "torn.npz"
    file.write_bytes(b"")
    assert np.load(stages.guess(teacher, file))["kept"].all()
    assert json.loads((teacher.parent / "torn_report.json").read_text())["mean_reliability"] is None
    written = file.stat().st_mtime_ns
    assert stages.guess(teacher, file).stat().st_mtime_ns == written


@pytest.mark.parametrize(("row", "teacher", "weight"), [
    ("st", "supervised", "0.0"), ("st_fixmatch", "supervised", "1.0"),
    ("st_fixmatch_teacher", "fixmatch", "0.0"), ("st_fixmatch_both", "fixmatch", "1.0")])
def test_consistency_works_in_the_stages_that_a_row_names(row: str, teacher: str, weight: str, tmp_path: Path,
                                                          monkeypatch: pytest.MonkeyPatch):
    trained: list[tuple[str, list[str]]] = []
    monkeypatch.setattr(stages, "trained_run", lambda folder, given: trained.append((folder.name, given)) or folder)
    monkeypatch.setattr(stages, "guess", lambda teacher, file: file)
    stages.cell(row, tmp_path, ["data.path=x"], 4, 7)
    (first, _), (last, given) = trained
    assert (first, last) == (teacher, row)
    assert {"seed=1007", "data.seed=7", f"model.lambda_u={weight}"} < set(given)
    assert f"data.pseudo_masks={tmp_path / {'supervised': 'pseudo', 'fixmatch': 'fixmatch'}[teacher]}_masks.npz" in given


@pytest.mark.parametrize(("row", "weight"), [("st_plus_plus", "0.0"), ("st_plus_plus_fixmatch", "1.0")])
def test_st_plus_plus_has_a_student_of_the_stablest_half_in_between(row: str, weight: str, tmp_path: Path,
                                                                   monkeypatch: pytest.MonkeyPatch):
    trained: list[tuple[str, list[str]]] = []
    guessed: list[tuple[str, ...]] = []
    monkeypatch.setattr(stages, "trained_run", lambda folder, given: trained.append((folder.name, given)) or folder)
    monkeypatch.setattr(stages, "guess", lambda teacher, file, share=1.0, base=None: guessed.append(
        (teacher.name, file.name, str(share), base.name if base else "")) or file)
    stages.cell(row, tmp_path, ["data.path=x"], 4, 7)
    assert [name for name, _ in trained] == ["supervised", "st_reliable", row]
    assert guessed == [("supervised", "reliable_masks.npz", "0.5", ""),
                       ("st_reliable", "mixed_masks.npz", "1.0", "reliable_masks.npz")]
    assert {"seed=1007", "model.lambda_u=0", f"data.pseudo_masks={tmp_path / 'reliable_masks.npz'}"} < set(trained[1][1])
    assert {"seed=2007", f"model.lambda_u={weight}", f"data.pseudo_masks={tmp_path / 'mixed_masks.npz'}"} < set(trained[2][1])


def test_a_folder_of_other_overrides_or_another_process_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def table(*given: str) -> None:
        monkeypatch.setattr(sys, "argv", ["", "wbc_masks", "--data", "a.npz", "--seeds", "0", "--runs", str(tmp_path), *given])
        stages.main()

    def finished(row: str, folder: Path, common: list[str], labels: int, seed: int) -> Path:
        (folder / row).mkdir(exist_ok=True)
        write_summary(folder / row, {**GOOD, "scores": {"miou": 0.5}})
        if busy:
            table("--labels", str(labels))  # a second process meanwhile
        return folder / row

    monkeypatch.setattr(stages, "cell", finished)
    monkeypatch.setattr(stages.signal, "signal", lambda *_: None)
    busy = False
    table("--labels", "4", "--rows", "st", "--set", "data.size=32")
    table("--labels", "4", "10", "--set", "data.size=32")  # more rows and labels are no other table
    with pytest.raises(ConfigError, match="other overrides"):
        table("--labels", "4", "--set", "data.size=64")
    busy = True
    with pytest.raises(ConfigError, match="another process is still at work"):
        table("--labels", "50")
