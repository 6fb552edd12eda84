"""Classifiers that were trained elsewhere: found by name or class, filled strictly, and refused with a reason."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from datamodules.images.digits import DigitsDataModule
from ssl_suite.config import ConfigError, validate
from ssl_suite.data.streams import CLEAN, ShiftStreams
from ssl_suite.deploy import GROUPS, deploy
from ssl_suite.networks import load_network, timm_network, torchvision_network
from ssl_suite.testing import tiny_spec
from tests.configs import composed, names

SPEC = tiny_spec("images")
HERE = "tests.unit.test_networks"
SHORT = ("stream.shifts=[fog]", "stream.family=digits", "stream.limit=48", "stream.batch_size=16")


class Own(nn.Module):
    """A network that asks for the number of classes and takes no ``length``."""

    def __init__(self, num_classes: int, width: int = 8) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, width, 3), nn.BatchNorm2d(width), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten())
        self.classifier = nn.Linear(4 * width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.body(x))


class Pair(Own):
    """A network that returns more than logits."""

    def forward(self, x: Tensor) -> Any:
        return super().forward(x), x


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    save_file(Own(10, 16).state_dict(), tmp_path / "own.safetensors")
    return tmp_path / "own.safetensors"


def command(weights: Path, *overrides: str, model: str = "tent") -> dict[str, Any]:
    return composed(f"model={model}", "network=own", f"network._target_={HERE}.Own", "+network.width=16", f"weights={weights}",
                    "trusted_packages=[tests]", "data=digits", "seed=0", *SHORT, *overrides, program="adapt")


def adapted(folder: Path, cfg: dict[str, Any]) -> dict[str, Any]:
    folder.mkdir()
    deploy(OmegaConf.create(cfg), folder)
    return json.loads((folder / "summary.json").read_text())


@pytest.mark.parametrize("model", ["tent", "t3a", "rotta"])
def test_own_class_is_adapted_by_methods_that_need_views_or_features(weights: Path, tmp_path: Path, model: str,
                                                                     capsys: pytest.CaptureFixture[str]) -> None:
    summary = adapted(tmp_path / "out", command(weights, model=model))
    assert (summary["method"], summary["data"]) == ({"tent": "Tent", "t3a": "T3A", "rotta": "RoTTA"}[model], "DigitsDataModule")
    assert f"weights: 9 tensors from {weights}" in capsys.readouterr().out.replace("\n", "")


def test_the_source_is_the_network_with_the_given_mean_and_deviation(weights: Path, tmp_path: Path) -> None:
    summary = adapted(tmp_path / "out", command(weights, "data.mean=[0.1]", "data.std=[0.7]"))
    data, network = DigitsDataModule(seed=0), Own(10, 16).eval()
    data.setup()
    network.load_state_dict(load_file(weights))
    wrong = total = 0
    for batch in ShiftStreams(batch_size=16, limit=48, seed=0).batches(data, data.spec, CLEAN):
        raw = batch["x"] * data.spec.std[0] + data.spec.mean[0]
        with torch.no_grad():
            wrong += int((network((raw - 0.1) / 0.7).argmax(1) != batch["y"]).sum())
        total += len(raw)
    assert total == 48
    assert summary["scores"]["error_clean_before"] == pytest.approx(wrong / 48, abs=1e-6)


def plain_file(weights: Path) -> Path:
    """The same weights as torch saves them, with the prefix that data parallel training leaves."""
    torch.save(load_file(weights), weights.with_suffix(".pt"))
    return weights.with_suffix(".pt")


def test_weights_of_torch_with_a_prefix(weights: Path, tmp_path: Path) -> None:
    state = torch.load(plain_file(weights), weights_only=True)
    torch.save({"state_dict": {f"module.{name}": value for name, value in state.items()}}, tmp_path / "p.pth")
    spec = tiny_spec("images")
    model, mapping = load_network({"_target_": f"{HERE}.Own", "width": 16, "num_classes": 10}, str(tmp_path / "p.pth"),
                                  spec_of(10), ["tests"])
    assert spec.num_classes == 3
    assert not model.training
    assert "'module.*' -> '*'" in str(mapping)
    assert torch.equal(model.classifier.weight, state["classifier.weight"])


def spec_of(classes: int) -> Any:
    return replace(SPEC, classes=tuple(str(i) for i in range(classes)))


def test_names_of_timm_and_torchvision(tmp_path: Path) -> None:
    network = timm_network("test_vit", spec=SPEC, img_size=8, patch_size=4)
    torch.save(network.state_dict(), tmp_path / "vit.pt")
    config = {"_target_": "ssl_suite.networks.timm_network", "name": "test_vit", "img_size": 8, "patch_size": 4}
    model, mapping = load_network(config, str(tmp_path / "vit.pt"), SPEC)
    assert model(torch.zeros(2, 1, 8, 8)).shape == (2, 3)
    assert mapping.loaded == len(network.state_dict())
    with pytest.raises(ValueError, match=r"name=resnt18 is none of timm's; did you mean resnet18"):
        timm_network("resnt18", spec=SPEC)
    with pytest.raises(ValueError, match="is none of timm's"):
        timm_network("hf-hub:someone/something", spec=SPEC)
    coloured = tiny_spec("images", odd=True)
    assert torchvision_network("squeezenet1_1", spec=coloured).classifier[1].out_channels == 3
    with pytest.raises(ValueError, match=r"name=resnet is none of torchvision's; did you mean"):
        torchvision_network("resnet", spec=coloured)
    with pytest.raises(ValueError, match="takes colour pictures"):
        torchvision_network("resnet18", spec=SPEC)


@pytest.mark.parametrize("name", names("network"))
def test_choices_validate(name: str) -> None:
    given = f"network._target_={HERE}.Own" if name == "own" else "network.name=resnet18"
    cfg = composed("model=tent", f"network={name}", given, "weights=FILE", "data=digits", "seed=0", program="adapt")
    validate({k: v for k, v in cfg.items() if k not in ("model", "trainer")}, GROUPS, ["tests"])


@pytest.mark.parametrize(("overrides", "said"), [
    (("network=null",), "checkpoint is missing; give either the folder"),
    (("checkpoint=somewhere",), "both checkpoint and network are given"),
    (("weights=null",), "weights is missing: the network would be untrained"),
    (("weights=nowhere.pt",), r"weights: nowhere\.pt does not exist"),
    (("data=null",), "data is missing: a network brings none"),
    (("data.mean=[0.1,0.2]",), r"data.mean=\[0\.1, 0\.2\]: one number for each of 1 channels"),
    (("trusted_packages=[]",), r"network\._target_: tests\.unit\.test_networks\.Own lies outside"),
    (("network.width=24",), r"is \(16, 1, 3, 3\) but body\.0\.weight needs \(24, 1, 3, 3\)"),
    (("+network.depth=2",), r"network\.depth: Own takes no 'depth'"),
    ((f"network._target_={HERE}.Pair",), r"network: Pair maps two samples to tuple, and logits \(2, 10\) are needed")])
def test_what_is_wrong_is_told(weights: Path, tmp_path: Path, overrides: tuple[str, ...], said: str) -> None:
    if overrides == ("network=null",):
        cfg = composed("model=tent", "data=digits", "seed=0", program="adapt")
    elif overrides == ("data=null",):
        cfg = {**command(weights), "data": None}
    else:
        cfg = command(weights, *overrides)
    with pytest.raises(ConfigError, match=said):
        deploy(OmegaConf.create(cfg), tmp_path)
