"""The programs as a user meets them: an installed wheel outside the checkout, own configs, own modules, scripts on a run."""

from __future__ import annotations

import importlib.util
import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
import torch
import yaml
from omegaconf import OmegaConf

from datamodules.images.digits import DigitsDataModule
from ssl_suite.config import ConfigError
from ssl_suite.deploy import deploy
from ssl_suite.run import load_exported, load_run, objective
from ssl_suite.summary import check_summary
from tests.configs import composed
from tests.runs import run, tiny_data

ROOT = Path(__file__).resolve().parents[2]

OWN_METHOD = '''
"""A method of one's own."""
from ssl_suite.batch import StepOutput, Tags
from ssl_suite.method import Method


class Variance(Method):
    """Asks for features of unit variance."""

    tags = Tags("none", "pretraining", views=("weak",))

    def __init__(self, backbone, views, *, target: float = 1.0, **training):
        super().__init__(backbone, views, **training)
        self.target = target

    def step(self, batch):
        h = self.backbone(*self.views(batch, "weak"))
        return StepOutput((h.var(0) - self.target).square().mean(), features=h.detach())
'''
OWN_CONFIG = """# @package _global_
model:
  _target_: my_methods.Variance
  target: 2.0
trusted_packages: [my_methods]
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    return run(folder / "run", "model=supervised", *tiny_data("images", folder))


def script(monkeypatch: pytest.MonkeyPatch, name: str, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", [f"{name}.py", *arguments])
    runpy.run_path(str(ROOT / "scripts" / f"{name}.py"), run_name="__main__")


def test_a_run_loads_without_its_data(trained: Path) -> None:
    loaded = load_run(trained)
    assert loaded.spec.num_classes == 10
    assert not loaded.method.training
    backbone, spec = load_exported(trained)
    assert spec == loaded.spec
    x = torch.randn(3, *spec.shape)
    with torch.no_grad():
        assert torch.equal(backbone(x), loaded.method.encoder(x))


def test_extract_writes_features_in_order(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "features.npz"
    script(monkeypatch, "extract", str(trained), "--data", "digits", "--set", "data.test_fraction=0.1", "--out", str(out))
    assert [p.name for p in tmp_path.iterdir()] == ["features.npz"]
    found = np.load(out)
    assert found["features"].dtype == np.float32
    assert len(found["features"]) == len(found["y"]) == len(found["index"]) == 179
    assert np.isfinite(found["features"]).all()


@pytest.mark.parametrize("protocol", ["probe", "views", "test"])
def test_evaluate_judges_again(protocol: str, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "scores.json"
    script(monkeypatch, "evaluate", str(trained), "--protocol", protocol, "--out", str(out))
    scores = json.loads(out.read_text())
    if protocol == "test":
        recorded = json.loads((trained / "summary.json").read_text())["scores"]["accuracy"]
        assert scores["this run"]["accuracy"] == pytest.approx(recorded, abs=1e-5)
    elif protocol == "views":
        assert scores.keys() == {"this run", "untrained"}
        assert scores["this run"].keys() == {"lidar", "alignment", "uniformity"}
        assert scores["this run"] != scores["untrained"]
    else:
        assert scores.keys() == {"this run", "untrained", "raw"}
        assert scores["this run"].keys() == {"knn", "probe_1shot", "probe_3shot", "probe_full", "rankme", "alpha_req"}


@pytest.mark.parametrize("by", ["pca", "tsne"])
def test_evaluate_draws_a_map(by: str, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script(monkeypatch, "evaluate", str(trained), "--protocol", "map", "--by", by, "--out", str(tmp_path / "map.png"))
    picture = matplotlib.image.imread(tmp_path / "map.png")
    assert len(np.unique(picture[..., :3].reshape(-1, 3), axis=0)) > 20, "points in the colours of their classes"


@pytest.mark.parametrize(("name", "arguments", "said"), [
    ("extract", ["nowhere", "--data", "digits", "--out", "x.npz"], "nowhere"),
    ("export", ["nowhere"], "nowhere"),
    ("evaluate", ["nowhere"], "nowhere"),
    ("extract", ["RUN", "--data", "digts", "--out", "x.npz"], "did you mean 'digits'"),
    ("extract", ["RUN", "--data", "digits", "--set", "+data.size=16", "--out", "x.npz"], "built for images of shape"),
    ("export", ["RUN"], "ONNX"),
    ("serve", ["nowhere"], "nowhere"),
    ("serve", ["RUN", "--adapter", "mae"], "does not adapt"),
    ("serve", ["RUN", "--adapter", "tnt"], "did you mean"),
    ("serve", ["RUN", "--set", "adapter.step=2"], "adapter.step"),
    ("serve", ["RUN", "--max-ms", "-1"], "max_ms")])
def test_scripts_tell_mistakes_in_one_message(name: str, arguments: list[str], said: str, trained: Path, tmp_path: Path,
                                              monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stopped:
        script(monkeypatch, name, *(str(trained) if a == "RUN" else a for a in arguments))
    text = capsys.readouterr().err
    assert stopped.value.code == 1
    assert said in text
    assert text.startswith("error: ")
    assert "Traceback" not in text
    assert list(tmp_path.iterdir()) == []


def test_init_from_reports_and_copies(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(tmp_path / "run", "model=linear_probe", "data=digits", f"init_from={trained}")
    assert "tensors from" in capsys.readouterr().out
    before, after = load_exported(trained)[0], load_exported(tmp_path / "run")[0]
    for a, b in zip(before.parameters(), after.parameters(), strict=True):
        assert torch.equal(a, b), "a linear probe leaves the backbone as it was"


@pytest.mark.parametrize(("model", "source", "said"), [("suta", "supervised", "train one with model=ctc"),
                                                       ("tent", "ctc", "predicts no classes")])
def test_adapters_refuse_what_they_cannot_adapt(model: str, source: str, said: str, trained: Path, tmp_path: Path) -> None:
    if source == "ctc":
        trained = run(tmp_path / "run", "model=ctc", *tiny_data("speech", tmp_path, "text"))
    cfg = composed(f"model={model}", f"checkpoint={trained}", "seed=0", "stream.shifts=[clean]", program="adapt")
    with pytest.raises(ConfigError, match=said):
        deploy(OmegaConf.create(cfg), tmp_path)


def test_adapting_refuses_samples_of_another_size(trained: Path, tmp_path: Path) -> None:
    cfg = composed("model=tent", f"checkpoint={trained}", "seed=0", "data=digits", "+data.size=16", program="adapt")
    with pytest.raises(ConfigError, match="built for images of shape"):
        deploy(OmegaConf.create(cfg), tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_an_installed_wheel_outside_the_checkout(tmp_path: Path) -> None:
    builder = [sys.executable, "-m", "build", "--wheel", "--outdir", str(tmp_path / "dist"), str(ROOT)]
    if importlib.util.find_spec("hatchling"):
        builder.insert(3, "--no-isolation")
    built = subprocess.run(builder, capture_output=True, text=True, timeout=600)
    if built.returncode:
        pytest.skip(f"the wheel cannot be built here: {built.stderr.strip().splitlines()[-1:]}")
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    site, work = tmp_path / "site", tmp_path / "work"
    subprocess.run([sys.executable, "-m", "pip", "install", "--no-deps", "--no-index", "--target", str(site), str(wheel)],
                   check=True,
                   capture_output=True, timeout=300)
    work.mkdir()
    (work / "my_methods.py").write_text(OWN_METHOD)
    (work / "my_configs" / "model").mkdir(parents=True)
    (work / "my_configs" / "model" / "variance.yaml").write_text(OWN_CONFIG)

    def program(*arguments: str) -> str:
        environment = {**os.environ, "PYTHONPATH": str(site), "OMP_NUM_THREADS": "1"}
        done = subprocess.run([sys.executable, "-m", "ssl_suite", *arguments], cwd=work, env=environment, text=True,
                              capture_output=True, timeout=300)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    where = subprocess.run([sys.executable, "-c", "import ssl_suite; print(ssl_suite.__file__)"], cwd=work, text=True, check=True,
                           capture_output=True, env={**os.environ, "PYTHONPATH": str(site)}).stdout
    assert where.startswith(str(site)), "the control: the checkout must not be what runs"
    program("train", "model=mae", "debug=two_steps", "hydra.run.dir=mae")
    program("train", "model=supervised", "debug=two_steps", "hydra.run.dir=supervised")
    program("adapt", "model=tent", "checkpoint=supervised", "stream=digits", "stream.limit=32", "stream.shifts=[fog]",
            "hydra.run.dir=adapted")
    program("train", "--config-dir", "my_configs", "model=variance", "debug=two_steps", "hydra.run.dir=own")
    for folder in ("mae", "supervised", "adapted", "own"):
        summary = json.loads((work / folder / "summary.json").read_text())
        check_summary(summary)
        assert summary["commit"] == "unknown", "an installed package lies in no checkout"
    assert "variance" in program("train", "--config-dir", "my_configs", "--help")


def test_a_sweep_names_a_score_that_the_run_has() -> None:
    assert objective({"objective": "knn"}, {"knn": 0.5}) == 0.5
    assert objective({"objective": None}, {"knn": 0.5}) is None
    with pytest.raises(ConfigError, match="objective=knnn is none of this run's scores; did you mean 'knn'"):
        objective({"objective": "knnn"}, {"knn": 0.5})


@pytest.mark.parametrize(("name", "value", "least"), [("batch_size", 0, 1), ("num_workers", -1, 0), ("mu", 0, 1)])
def test_sizes_of_batches_are_checked_at_once(name: str, value: int, least: int) -> None:
    with pytest.raises(ValueError, match=rf"data\.{name} must be at least {least}, got {value}"):
        DigitsDataModule(**{name: value})


@pytest.mark.parametrize("file", sorted((ROOT / "scripts" / "tables").glob("*.yaml")), ids=lambda file: file.stem)
def test_rows_of_tables_compose(file: Path) -> None:
    functions = runpy.run_path(str(ROOT / "scripts" / "table.py"))
    table = yaml.safe_load(file.read_text())
    table |= {"rows": functions["rows_of"](table), "data": "data"}
    seen: set[str] = set()
    for row in table["rows"]:
        program, *overrides = functions["command"](table, row, 0, Path("runs"), [])
        if program == "train.py" and not set(overrides) - {f"hydra.run.dir=runs/{row}-0"} <= seen:
            composed(*(o for o in overrides if not o.startswith(("hydra", "resume"))))
        seen |= set(overrides)


def test_a_grid_takes_one_entry_of_each_axis() -> None:
    rows_of = runpy.run_path(str(ROOT / "scripts" / "table.py"))["rows_of"]
    table = {"rows": {"own": [["a=1"], "b=2"]}, "grid": {"set": {"x": ["data=x"], "y": ["data=y"]}, "of": {4: ["a={<set>_z}"]}}}
    assert rows_of(table) == {"own": ["a=1", "b=2"], "x_4": ["data=x", "a={x_z}"], "y_4": ["data=y", "a={y_z}"]}
