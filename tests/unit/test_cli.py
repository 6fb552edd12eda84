"""User mistakes on the command line end in one line, with code 1, and leave nothing behind."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
from hydra import compose, initialize_config_module
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig

import ssl_suite.run
from ssl_suite.cli import dotted, known_keys, program, quiet, remove_empty, run_folder
from ssl_suite.methods.pretraining.simclr import SimCLR
from ssl_suite.methods.supervised.classifier import Classifier

ROOT = Path(__file__).resolve().parents[2]


def told(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, folder: Path, *overrides: str) -> str:
    """What the program writes about a mistake, run in this process."""
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "argv", ["train.py", *overrides])
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    GlobalHydra.instance().clear()
    with pytest.raises(SystemExit) as stopped:
        program("train", ssl_suite.run.fit)()
    GlobalHydra.instance().clear()
    assert stopped.value.code == 1
    assert list(folder.iterdir()) == [], "a mistake left something behind"
    return capsys.readouterr().err


@pytest.mark.parametrize(("overrides", "said"), [
    (["model=simcrl"], "did you mean 'simclr'"),
    (["data=digts"], "did you mean 'digits'"),
    (["optimiser=sgd"], "did you mean 'optimizer'"),
    (["optimizer=sdg"], "did you mean 'sgd'"),
    (["model=simclr", "model.temprature=0.1"], "did you mean 'model.temperature'"),
    (["trainer.max_epoch=3"], "did you mean 'trainer.max_epochs'"),
    (["evaluation.probs=false"], "did you mean 'evaluation.probes'"),
    (["data.views.weka=[]"], "did you mean 'data.views.weak'"),
    (["+model.temprature=0.1", "model=simclr"], "did you mean 'temperature'"),
    (["trainer.max_epochs=three"], "trainer.max_epochs='three'"),
    (["data=image_arrays"], "data.path"),
    (["data=image_arrays", "data.path=nowhere.npz"], "nowhere.npz does not exist"),
    (["init_from=nowhere"], "nowhere does not exist"),
    (["resume=nowhere"], "nowhere"),
    (["init_from=runs/a=b"], "init_from=\"VALUE\""),
    (["model._target_=os.system"], "os.system lies outside"),
    (["model=tent"], "adapt.py"),
    (["model=mae", "backbone=convnet_tiny"], "ConvNet"),
    (["model=mae", "model.mask_ratio=1.5"], "mask_ratio"),
    (["data.labels_per_class=100000", "model=supervised"], "labels_per_class"),
])
def test_a_mistake_is_one_line(overrides: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str],
                               monkeypatch: pytest.MonkeyPatch) -> None:
    text = told(capsys, monkeypatch, tmp_path, *overrides)
    assert said in text
    assert text.startswith("error: ")
    assert text.count("\n") == 1, text
    assert "Traceback" not in text


def test_the_program_as_a_process(tmp_path: Path) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    wrong, usage = (subprocess.run([sys.executable, str(ROOT / "train.py"), *given], cwd=tmp_path, env=environment, text=True,
                                   capture_output=True, timeout=300) for given in (["model=simcrl"], ["--help"]))
    assert wrong.returncode == 1
    assert wrong.stderr == "error: model=simcrl: no such model; did you mean 'simclr'?\n"
    assert wrong.stdout == ""
    assert usage.returncode == 0
    for group in ("model: ", "data: ", "backbone: ", "optimizer: ", "schedule: ", "trainer: "):
        assert f"\n{group}" in usage.stdout
    assert list(tmp_path.iterdir()) == []


def test_run_folder_takes_up_the_newest_run_with_a_checkpoint(tmp_path: Path) -> None:
    for name, checkpoint in (("2026-01-01", True), ("2026-01-02", True), ("2026-01-03", False)):
        (tmp_path / "mae" / name / "checkpoints").mkdir(parents=True)
        if checkpoint:
            (tmp_path / "mae" / name / "checkpoints" / "a.ckpt").touch()
    assert run_folder(str(tmp_path), "mae", "auto") == str(tmp_path / "mae" / "2026-01-02")
    assert run_folder(str(tmp_path), "mae", "elsewhere") == "elsewhere"
    fresh = Path(run_folder(str(tmp_path), "simclr", "auto"))
    assert fresh.parent == tmp_path / "simclr"
    assert not fresh.exists()


def test_remove_empty_keeps_what_others_made(tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "mae_digits" / "now"
    folder.mkdir(parents=True)
    (tmp_path / "runs" / "other").touch()
    remove_empty(folder, "mae_digits")
    assert sorted(p.name for p in (tmp_path / "runs").iterdir()) == ["other"]
    chosen = tmp_path / "chosen" / "folder"
    chosen.mkdir(parents=True)
    remove_empty(chosen, "mae_digits")
    assert chosen.parent.is_dir()


def test_known_keys_follow_the_choices() -> None:
    assert "model.mask_ratio" in known_keys("train", ["model=mae"])
    assert "model.mask_ratio" not in known_keys("train", ["model=simclr"])
    assert dotted({"a": {"b": 1}, "c": 2}) == ["a", "c", "a.b"]


def test_the_launcher_of_slurm_composes() -> None:
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher", reason='needs pip install "ssl-suite[sweeps]"')
    GlobalHydra.instance().clear()
    given = ["model=mae", "hydra/launcher=submitit_slurm", "hydra.launcher.partition=gpus", "hydra.launcher.tasks_per_node=4",
             "hydra.launcher.gpus_per_node=4"]
    with initialize_config_module("configs", version_base="1.3"):
        launcher = compose("train", given, return_hydra_config=True).hydra.launcher
    assert launcher["_target_"].endswith("SlurmLauncher")
    assert (launcher.partition, launcher.tasks_per_node, launcher.gpus_per_node) == ("gpus", 4, 4)


def test_a_warning_is_one_line_and_a_notice_of_the_libraries_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(warnings, "formatwarning", warnings.formatwarning)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        quiet()
        for text in ("Found 39 module(s) in eval mode at the start of training.",
                     "Total length of `DataLoader` across ranks is zero.", "no labelled sample is of class 2"):
            warnings.warn(text, stacklevel=1)
    assert [str(w.message) for w in told] == ["no labelled sample is of class 2"]
    assert warnings.formatwarning(told[0].message, told[0].category, told[0].filename, told[0].lineno) == \
        "warning: no labelled sample is of class 2\n"


def test_the_next_command_keeps_what_was_typed_of_the_data() -> None:
    typed = ["model=simclr", "data=digits", "+data.size=16", "data.batch_size=256", "data.views.weak.0.fraction=0.0625"]
    GlobalHydra.instance().clear()
    with initialize_config_module("configs", version_base="1.3"):
        HydraConfig.instance().set_config(compose("train", typed, return_hydra_config=True))
    try:
        pretrained, classifier = (ssl_suite.run.next_commands(tags, Path("runs/one"), ssl_suite.run.typed_data("digits"))[0]
                                  for tags in (SimCLR.tags, Classifier.tags))
    finally:
        HydraConfig.instance().cfg = None
        GlobalHydra.instance().clear()
    assert pretrained == ("python train.py model=finetune data=digits +data.size=16 data.views.weak.0.fraction=0.0625 "
                          "init_from=runs/one data.labels_per_class=4")
    assert classifier == "python adapt.py model=tent checkpoint=runs/one", "a run brings its own data"
