"""What leaves the suite gives the same features without it."""

from __future__ import annotations

import importlib.util
import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from torch import nn

from ssl_suite.backbones.images import ConvNet, ResNet, ViT
from ssl_suite.backbones.series import SeriesTransformer
from ssl_suite.backbones.speech import Wav2Vec2
from ssl_suite.batch import Spec
from ssl_suite.config import ConfigError
from ssl_suite.io.export import example, export_onnx, export_weights, model_card
from ssl_suite.io.weights import save_backbone
from ssl_suite.nn.elastic import Slices
from ssl_suite.run import load_exported
from tests.runs import run

ROOT = Path(__file__).resolve().parents[3]
PICTURES = Spec("images", (3, 16, 16), mean=(0.5,) * 3, std=(0.25,) * 3)
SPEECH = Spec("speech", (4000,), rate=8000)
VIT = {"patch_size": 4, "width": 32, "depth": 2, "heads": 2}
WAVES = {"width": 32, "depth": 2, "heads": 2, "conv_channels": 16, "position_kernel": 8, "position_groups": 2}
CASES: dict[str, tuple[type[nn.Module], Spec, dict[str, object]]] = {
    "vit": (ViT, PICTURES, VIT), "vit_class": (ViT, PICTURES, {**VIT, "pool": "class"}),
    "resnet": (ResNet, PICTURES, {"name": "resnet18"}), "wav2vec2": (Wav2Vec2, SPEECH, WAVES)}

WITHOUT = """
import runpy, sys
for package in ("ssl_suite", "datamodules", "lightning", "hydra"):
    sys.modules[package] = None
import torch
torch.set_num_threads(1)
import os
for folder in sys.argv[1:]:
    os.chdir(folder)
    found = runpy.run_path("load.py")
    with torch.no_grad():
        torch.save(found["features"](torch.load("x.pt")), "features.pt")
try:
    import ssl_suite
    sys.exit("the suite can be imported: the test proves nothing")
except ImportError:
    pass
"""


def export(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    """Run scripts/export.py in this process."""
    monkeypatch.setattr(sys, "argv", ["export.py", *arguments])
    runpy.run_path(str(ROOT / "scripts" / "export.py"), run_name="__main__")


def test_exported_weights_give_equal_features_without_the_suite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected, folders = {}, []
    for seed, (name, (cls, spec, arguments)) in enumerate(CASES.items()):
        torch.manual_seed(seed)
        backbone = cls(spec, **arguments)
        for m in backbone.modules():
            if isinstance(m, nn.BatchNorm2d):
                m.running_mean.normal_()
                m.running_var.uniform_(0.5, 2.0)
        (tmp_path / name).mkdir()
        config = {"_target_": f"{cls.__module__}.{cls.__name__}", **arguments}
        save_backbone(tmp_path / name / "backbone.safetensors", backbone, spec, config)
        export(monkeypatch, str(tmp_path / name))
        folder = tmp_path / name / "export"
        assert {p.name for p in folder.iterdir()} == {"weights.safetensors", "load.py"}
        x = example(spec, 3)
        torch.save(x, folder / "x.pt")
        with torch.no_grad():
            expected[name] = backbone.eval()(x)
        folders.append(str(folder))
    done = subprocess.run([sys.executable, "-I", "-W", "ignore", "-c", WITHOUT, *folders], capture_output=True, text=True,
                          timeout=300, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    for name, features in expected.items():
        assert torch.equal(torch.load(tmp_path / name / "export" / "features.pt"), features), name


@pytest.mark.parametrize(("backbone", "said"), [
    (ConvNet(PICTURES), "ONNX"), (ResNet(PICTURES, width=16), "ONNX"), (ResNet(PICTURES, norm="group"), "ONNX"),
    (SeriesTransformer(Spec("series", (2, 32), mean=(0.0,) * 2, std=(1.0,) * 2), patch=4, width=32, depth=1, heads=2),
     "own network")],
    ids=["ConvNet", "narrow", "group", "series"])
def test_what_nobody_else_can_build_is_refused_with_a_remedy(backbone: nn.Module, said: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=said):
        export_weights(backbone, tmp_path / "weights.safetensors")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(any(importlib.util.find_spec(m) is None for m in ("onnx", "onnxruntime", "onnxscript")), reason="needs onnx")
@pytest.mark.parametrize("name", ["vit", "convnet"])
def test_onnx_agrees(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    backbone = ConvNet(PICTURES) if name == "convnet" else ViT(PICTURES, **VIT)  # type: ignore[arg-type]
    path = tmp_path / "encoder.onnx"
    assert export_onnx(backbone, PICTURES, path) <= 1e-4
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    for size in (1, 7):
        x = example(PICTURES, size)
        with torch.no_grad():
            made = torch.from_numpy(session.run(None, {"x": x.numpy()})[0])
            torch.testing.assert_close(made, backbone.eval()(x), rtol=0, atol=1e-4)


def test_onnx_that_differs_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")

    class Wrong(runtime.InferenceSession):  # type: ignore[misc,name-defined]
        def run(self, *args: object, **kwargs: object) -> list[object]:
            return [super().run(*args, **kwargs)[0] + 1e-3]

    monkeypatch.setattr(runtime, "InferenceSession", Wrong)
    with pytest.raises(ConfigError, match="not to be trusted"):
        export_onnx(ConvNet(PICTURES), PICTURES, tmp_path / "encoder.onnx")


def test_a_slice_is_exported_as_a_net_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    backbone, path = ViT(PICTURES, **VIT).eval(), tmp_path / "backbone.safetensors"  # type: ignore[arg-type]
    save_backbone(path, backbone, PICTURES, {"_target_": "ssl_suite.backbones.images.ViT", **VIT})
    export(monkeypatch, str(path), "--format", "backbone", "--width", "16", "--depth", "1")
    small, spec = load_exported(tmp_path / "export" / "backbone.safetensors")
    assert (spec, small.num_features) == (PICTURES, 16)
    with torch.no_grad():
        expected = Slices(backbone, [(16, 1)])(backbone, 16, 1, example(spec))
        torch.testing.assert_close(small(example(spec)), expected, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize(("size", "message"), [(["--width", "24"], "multiple of 16"), (["--depth", "3"], "lie within")])
def test_a_size_that_cannot_be_cut_is_named(size: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                            capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "backbone.safetensors"
    save_backbone(path, ViT(PICTURES, **VIT), PICTURES, {"_target_": "ssl_suite.backbones.images.ViT", **VIT})  # type: ignore[arg-type]
    with pytest.raises(SystemExit):
        export(monkeypatch, str(path), *size)
    said = capsys.readouterr()
    assert message in " ".join((said.out + said.err).split())


def test_the_card_says_what_the_run_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = run(tmp_path / "run", "model=mae", "data=digits", "seed=3", "callbacks.pictures=null")
    export(monkeypatch, str(folder), "--licence", "cc-by-4.0")
    card = (folder / "export" / "README.md").read_text()
    told, header = json.loads((folder / "summary.json").read_text()), yaml.safe_load(card.split("---")[1])
    assert header == {"license": "cc-by-4.0", "library_name": "ssl-suite", "tags": ["self-supervised-learning", told["method"]]}
    assert all(piece in card for piece in (f"# {told['method']} on {told['data']}", "- Seed: 3", f"commit {told['commit']}",
                                           "from random weights", (folder / "config.yaml").read_text()))
    for name, value in told["scores"].items():
        assert f"| {name} | {value:.4f} |" in card
    assert "- Licence of the weights: not stated" in model_card(folder, None)
    assert "license: unknown" in model_card(folder, None)
