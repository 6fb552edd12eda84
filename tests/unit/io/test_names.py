"""Weights under the names of Hugging Face's transformers, written out here, and by the library itself where it is installed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor

from ssl_suite.backbones.images import ResNet, ViT
from ssl_suite.backbones.speech import Wav2Vec2
from ssl_suite.batch import Spec
from ssl_suite.io.names import plain_names
from ssl_suite.io.weights import load_backbone

PICTURES = Spec("images", (3, 16, 16))
SMALL = {"patch_size": 4, "width": 32, "depth": 2, "heads": 2}
BLOCK = {"norm1": "layernorm_before", "norm2": "layernorm_after", "attn.proj": "attention.output.dense",
         "mlp.fc1": "intermediate.dense", "mlp.fc2": "output.dense"}


def vit(seed: int, **options: Any) -> ViT:
    torch.manual_seed(seed)
    return ViT(options.pop("spec", PICTURES), **{**SMALL, **options}).eval()


def vit_names(net: Any, prefix: str) -> dict[str, Tensor]:
    """A timm ViT's tensors as ``ViTModel`` names them."""
    made = {"embeddings.cls_token": net.cls_token, "embeddings.position_embeddings": net.pos_embed,
            "layernorm.weight": net.norm.weight, "layernorm.bias": net.norm.bias,
            "embeddings.patch_embeddings.projection.weight": net.patch_embed.proj.weight,
            "embeddings.patch_embeddings.projection.bias": net.patch_embed.proj.bias}
    for i, block in enumerate(net.blocks):
        for kind in ("weight", "bias"):
            layer, parts = f"encoder.layer.{i}", getattr(block.attn.qkv, kind).chunk(3)
            made |= {f"{layer}.attention.attention.{n}.{kind}": p for n, p in zip(("query", "key", "value"), parts, strict=True)}
            made |= {f"{layer}.{there}.{kind}": getattr(block.get_submodule(here), kind) for here, there in BLOCK.items()}
    return {prefix + name: value.detach().clone() for name, value in made.items()}


@pytest.mark.parametrize("prefix", ["", "vit."])
def test_a_vit(prefix: str, tmp_path: Path) -> None:
    source, target, x = vit(0), vit(1), torch.randn(2, 3, 16, 16)
    beside = {"classifier.weight": torch.zeros(4, 32), f"{prefix}pooler.dense.bias": torch.zeros(32)}
    tensors = vit_names(source.net, prefix) | beside
    save_file(tensors, tmp_path / "model.safetensors")
    report = load_backbone(target, tmp_path / "model.safetensors")
    assert report.unused == []
    assert report.loaded == len(source.state_dict())
    assert torch.equal(source(x), target(x))


def test_a_missing_key_of_a_vit_is_told(tmp_path: Path) -> None:
    tensors = vit_names(vit(0).net, "vit.")
    del tensors["vit.encoder.layer.1.attention.attention.key.weight"]
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"lacks 1 of .*net\.blocks\.1\.attn\.qkv\.weight"):
        load_backbone(vit(1), tmp_path / "model.safetensors")


def resnet_names(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """A timm ResNet's tensors as ``ResNetModel`` names them."""
    made = {}
    for name, value in tensors.items():
        part, _, rest = name.partition(".")
        if part in ("conv1", "bn1"):
            made[f"resnet.embedder.embedder.{'convolution' if part == 'conv1' else 'normalization'}.{rest}"] = value
            continue
        block, inner, leaf = rest.split(".", 2)
        place = f"resnet.encoder.stages.{int(part[-1]) - 1}.layers.{block}"
        if inner == "downsample":
            which, leaf = leaf.split(".")
            made[f"{place}.shortcut.{('convolution', 'normalization')[int(which)]}.{leaf}"] = value
        else:
            made[f"{place}.layer.{int(inner[-1]) - 1}.{'convolution' if inner[:-1] == 'conv' else 'normalization'}.{leaf}"] = value
    return made


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_a_resnet(name: str) -> None:
    with torch.device("meta"):
        wanted = timm.create_model(name, num_classes=0).state_dict()
    assert plain_names(resnet_names(wanted)).keys() == wanted.keys()


def test_weights_of_a_resnet_arrive(tmp_path: Path) -> None:
    torch.manual_seed(0)
    plain = timm.create_model("resnet18", num_classes=0)
    torch.save(resnet_names(plain.state_dict()), tmp_path / "model.bin")
    target = ResNet(PICTURES, small_stem=False).eval()
    load_backbone(target, tmp_path / "model.bin")
    x = torch.randn(1, 3, 32, 32)
    torch.testing.assert_close(target(x), plain.eval()(x))


WAVES: dict[str, Any] = {"width": 16, "depth": 1, "heads": 2, "conv_channels": 8, "conv_layers": ((10, 5), (3, 2)),
                         "position_kernel": 4, "position_groups": 2}


def waves(seed: int) -> Wav2Vec2:
    torch.manual_seed(seed)
    return Wav2Vec2(Spec("speech", (4000,), rate=16000), **WAVES).eval()


@pytest.mark.parametrize("old", [False, True])
def test_a_wav2vec(old: bool, tmp_path: Path) -> None:
    source, target = waves(0), waves(1)
    tensors = {"masked_spec_embed": torch.zeros(16)}
    for name, value in source.net.state_dict().items():
        name = name.replace("encoder.feature_projection.", "feature_projection.").replace("encoder.transformer.", "encoder.")
        if old:
            for now, then in (("0", "weight_g"), ("1", "weight_v")):
                name = name.replace(f"parametrizations.weight.original{now}", then)
        tensors[f"wav2vec2.{name}"] = value
    torch.save(tensors, tmp_path / "model.bin")
    report = load_backbone(target, tmp_path / "model.bin")
    assert report.unused == []
    x = torch.randn(2, 4000)
    assert torch.equal(source(x), target(x))


def test_the_suites_own_names_stay() -> None:
    for backbone in (vit(0), waves(0)):
        own = backbone.state_dict()
        assert plain_names(own).keys() == own.keys()


@pytest.mark.parametrize("pool", ["mean", "class"])
def test_positions_are_interpolated_and_told(pool: Any, tmp_path: Path) -> None:
    source, target = vit(0, pool=pool), vit(1, spec=Spec("images", (3, 24, 16)), pool=pool)
    torch.save(source.net.state_dict(), tmp_path / "a.pt")
    report = load_backbone(target, tmp_path / "a.pt")
    assert "interpolated: positions of 4x4 patches to 6x4" in str(report)
    x = torch.randn(2, 3, 24, 16)
    torch.testing.assert_close(source(x), target(x), msg="not as the source interpolates for a picture of that size")


def test_positions_of_another_width_or_of_no_square_are_refused(tmp_path: Path) -> None:
    torch.save(vit(0, width=16).net.state_dict(), tmp_path / "a.pt")
    with pytest.raises(ValueError, match="build the backbone for the same input size and width"):
        load_backbone(vit(1, spec=Spec("images", (3, 24, 24))), tmp_path / "a.pt")
    torch.save(vit(0, spec=Spec("images", (3, 24, 16))).net.state_dict(), tmp_path / "a.pt")
    with pytest.raises(ValueError, match=r"pos_embed is \(1, 25, 32\) but net\.pos_embed needs \(1, 17, 32\)"):
        load_backbone(vit(1), tmp_path / "a.pt")


def test_the_library_agrees(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    torch.manual_seed(0)
    config = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 128}
    made = {
        "vit": transformers.ViTModel(transformers.ViTConfig(image_size=16, patch_size=4, layer_norm_eps=1e-6, **config)),
        "resnet": transformers.ResNetModel(transformers.ResNetConfig(layer_type="basic", depths=[2, 2, 2, 2],
                                                                     hidden_sizes=[64, 128, 256, 512])),
        "waves": transformers.Wav2Vec2Model(transformers.Wav2Vec2Config(
            hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64, conv_dim=[8, 8], conv_kernel=[10, 3],
            conv_stride=[5, 2], num_feat_extract_layers=2, num_conv_pos_embeddings=4, num_conv_pos_embedding_groups=2))}
    targets = {"vit": vit(1, pool="class"), "resnet": ResNet(PICTURES, small_stem=False).eval(), "waves": waves(1)}
    inputs = {"vit": torch.randn(2, 3, 16, 16), "resnet": torch.randn(2, 3, 32, 32), "waves": torch.randn(2, 4000)}
    for name, model in made.items():
        torch.save(model.state_dict(), tmp_path / f"{name}.bin")
        load_backbone(targets[name], tmp_path / f"{name}.bin")
        with torch.no_grad():
            out = model.eval()(inputs[name])
            expected = {"vit": lambda out=out: out.last_hidden_state[:, 0], "resnet": lambda out=out: out.pooler_output.flatten(1),
                        "waves": lambda out=out: out.last_hidden_state.mean(1)}[name]()
            torch.testing.assert_close(targets[name](inputs[name]), expected, rtol=1e-3, atol=1e-4)
