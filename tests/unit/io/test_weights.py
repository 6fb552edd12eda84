"""Loading weights: strict, safe, and telling what went where."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn

from ssl_suite.backbones.images import ConvNet, ResNet, ViT
from ssl_suite.batch import Spec
from ssl_suite.config import ConfigError
from ssl_suite.io.weights import load_backbone, read_description, save_backbone
from ssl_suite.run import load_exported

SPEC = Spec("images", (1, 8, 8), classes=("a", "b"))
CONFIG = {"_target_": "ssl_suite.backbones.images.ConvNet", "widths": [8, 16], "num_features": 16}


def convnet(seed: int = 0, features: int = 16) -> ConvNet:
    torch.manual_seed(seed)
    return ConvNet(SPEC, widths=(8, 16), num_features=features)


def contiguous(net: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.contiguous() for name, value in net.state_dict().items()}


def same(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def test_saved_and_built_again_from_the_file_alone(tmp_path: Path) -> None:
    path = tmp_path / "backbone.safetensors"
    save_backbone(path, convnet(), SPEC, CONFIG)
    assert [p.name for p in tmp_path.iterdir()] == ["backbone.safetensors"]
    assert read_description(path) == (SPEC, CONFIG)
    backbone, spec = load_exported(tmp_path)
    assert spec == SPEC
    assert same(backbone, convnet())
    assert not backbone.training


@pytest.mark.parametrize("prefix", ["", "backbone.", "module.backbone.", "module.", "model.", "encoder.", "student.backbone."])
def test_prefixes_are_mapped_and_reported(prefix: str, tmp_path: Path) -> None:
    tensors = {f"{prefix}{name}": value for name, value in convnet().state_dict().items()}
    torch.save({"state_dict": {**tensors, "projector.0.weight": torch.zeros(2), "odd.weight": torch.zeros(2)}}, tmp_path / "a.pt")
    target = convnet(seed=1)
    assert not same(target, convnet())
    report = load_backbone(target, tmp_path / "a.pt")
    assert same(target, convnet())
    assert report.loaded == len(tensors)
    assert report.prefix == (prefix, "")
    assert report.unused == ["odd.weight"], "heads are expected to stay behind, anything else is told"
    assert str(report).startswith(f"{len(tensors)} tensors from ")
    assert (f"names '{prefix}*' -> '*'" in str(report)) == bool(prefix)


@pytest.mark.parametrize("kind", ["safetensors", "pt"])
def test_plain_timm_weights_are_taken(kind: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    plain = timm.create_model("vit_tiny_patch16_224", num_classes=7, in_chans=1, img_size=8, patch_size=4, embed_dim=32, depth=2,
                              num_heads=2)
    path = tmp_path / f"weights.{kind}"
    (save_file if kind == "safetensors" else torch.save)(plain.state_dict(), path)
    vit = ViT(SPEC, patch_size=4, width=32, depth=2, heads=2)
    report = load_backbone(vit, path)
    assert report.prefix == ("", "net.")
    assert report.unused == []
    x = torch.randn(2, 1, 8, 8)
    torch.testing.assert_close(vit.eval()(x), plain.eval().forward_features(x)[:, 1:].mean(1))


def test_a_timm_resnet_is_taken(tmp_path: Path) -> None:
    plain = timm.create_model("resnet18", in_chans=1)
    torch.save(plain.state_dict(), tmp_path / "a.pt")
    resnet = ResNet(SPEC, small_stem=False)
    assert load_backbone(resnet, tmp_path / "a.pt").loaded == len(resnet.state_dict())
    with pytest.raises(ValueError, match=r"conv1\.weight is \(64, 1, 7, 7\) but net\.conv1\.weight needs \(64, 1, 3, 3\)"):
        load_backbone(ResNet(SPEC), tmp_path / "a.pt")


def test_missing_tensors_are_named_and_nothing_is_loaded(tmp_path: Path) -> None:
    tensors = contiguous(convnet())
    lost = next(iter(tensors))
    save_file({k: v for k, v in tensors.items() if k != lost}, tmp_path / "a.safetensors")
    target = convnet(seed=1)
    with pytest.raises(ValueError, match=f"lacks 1 of .*{lost}"):
        load_backbone(target, tmp_path / "a.safetensors")
    assert same(target, convnet(seed=1))


def test_wrong_shapes_are_named_and_nothing_is_loaded(tmp_path: Path) -> None:
    save_file(contiguous(convnet(features=24)), tmp_path / "a.safetensors")
    target = convnet(seed=1)
    with pytest.raises(ValueError, match=r"is \(24, .*but .* needs \(16, "):
        load_backbone(target, tmp_path / "a.safetensors")
    assert same(target, convnet(seed=1))


class Hostile:
    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> Any:
        return os.system, (self.command,)


@pytest.mark.parametrize("writer", ["torch", "pickle"])
def test_a_hostile_pickle_is_refused_and_does_nothing(writer: str, tmp_path: Path) -> None:
    mark, path = tmp_path / "owned", tmp_path / "a.ckpt"
    content = {"state_dict": convnet().state_dict(), "more": Hostile(f"touch {mark}")}
    if writer == "torch":
        torch.save(content, path)
    else:
        path.write_bytes(pickle.dumps(content))
    torch.load(path, weights_only=False) if writer == "torch" else pickle.loads(path.read_bytes())
    assert mark.exists(), "the control: an unsafe loader does run it"
    mark.unlink()
    with pytest.raises(ValueError, match="not a plain file of weights"):
        load_backbone(convnet(), path)
    assert not mark.exists()


def test_files_that_are_no_weights(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="does not exist; give a run folder"):
        load_backbone(convnet(), tmp_path / "nothing.pt")
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(ValueError, match="holds a list"):
        load_backbone(convnet(), tmp_path / "list.pt")
    save_file(contiguous(convnet()), tmp_path / "bare.safetensors")
    with pytest.raises(ConfigError, match="not written by ssl_suite"):
        load_exported(tmp_path / "bare.safetensors")
    with pytest.raises(ConfigError, match=r"no such file|No such file|does not exist"):
        load_exported(tmp_path / "nowhere")


def test_a_damaged_safetensors_file_is_a_clear_error(tmp_path: Path) -> None:
    path = tmp_path / "backbone.safetensors"
    save_backbone(path, convnet(), SPEC, CONFIG)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"backbone.safetensors is not a plain file of weights"):
        load_backbone(convnet(), path)
    with pytest.raises(ConfigError, match=r"backbone.safetensors is damaged"):
        load_exported(path)
