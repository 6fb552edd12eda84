"""The stages of self-training for masks: what a teacher writes, what is reliable, and that every stage starts anew."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ssl_suite.config import ConfigError
from ssl_suite.run import load_run
from tests.runs import masks, run

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def stages() -> dict[str, Any]:
    return runpy.run_path(str(ROOT / "scripts" / "self_training_masks.py"))


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("masks")
    return run(folder / "teacher", "model=segmentation", "data=segmentation_arrays", f"data.path={masks(folder)}", "data.labels=4",
               "callbacks.checkpoint.every_n_train_steps=1", "callbacks.checkpoint.every_n_epochs=null",
               "callbacks.checkpoint.save_on_train_epoch_end=false", "trainer.max_epochs=1")


def test_a_teacher_labels_every_pixel_of_every_other_picture_and_a_student_starts_anew(stages, teacher: Path):
    file = stages["guess"](teacher, teacher.parent / "pseudo.npz")
    made, loaded = dict(np.load(file)), load_run(teacher)
    data, index = stages["unlabelled"](loaded)
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


def test_the_stablest_half_is_kept_and_stays_when_the_rest_is_guessed_anew(stages, teacher: Path):
    loaded = load_run(teacher)
    data, index = stages["unlabelled"](loaded)
    if len(list((teacher / "checkpoints").glob("*.ckpt"))) < 2:
        pytest.fail("the teacher should have kept its checkpoints")
    score = stages["reliability"](loaded, data, index)
    assert ((score >= 0) & (score <= 1)).all()
    first = stages["guess"](teacher, teacher.parent / "reliable.npz", 0.5)
    kept = np.load(first)["kept"]
    assert kept.sum() == round(0.5 * len(index))
    assert score[kept].min() >= score[~kept].max()
    spoilt = dict(np.load(first))
    spoilt["target"][:] = 2
    np.savez(teacher.parent / "spoilt.npz", **spoilt)
    both = np.load(stages["guess"](teacher, teacher.parent / "mixed.npz", base=teacher.parent / "spoilt.npz"))
    assert (both["target"][kept] == 2).all()
    assert np.array_equal(both["target"][~kept], np.load(first)["target"][~kept])
    assert both["kept"].all()


def test_one_checkpoint_is_not_enough(stages, teacher: Path):
    loaded = load_run(teacher)
    loaded.folder = teacher.parent
    with pytest.raises(ConfigError, match="kept 0 checkpoints"):
        stages["reliability"](loaded, None, np.arange(2))
