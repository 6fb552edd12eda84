"""Which parameters decay, and how fast each layer learns."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import nn

from ssl_suite.backbones.images import ResNet, ViT
from ssl_suite.backbones.speech import Wav2Vec2
from ssl_suite.batch import Spec
from ssl_suite.optim import layer_groups, parameter_groups

PICTURES = Spec("images", (1, 8, 8))
SPEECH = Spec("speech", (4000,), rate=8000)


def backbones() -> list[nn.Module]:
    return [ViT(PICTURES, patch_size=4, width=32, depth=3, heads=2), ResNet(PICTURES, width=8),
            Wav2Vec2(SPEECH, width=32, depth=3, heads=2, conv_channels=16, position_kernel=8, position_groups=2)]


def rates(backbone: nn.Module, head: nn.Module, decay: float = 0.5) -> dict[str, float]:
    """Rate of every parameter by its name, the head's under ``head.``."""
    names = {id(p): n for n, p in backbone.named_parameters()} | {id(p): f"head.{n}" for n, p in head.named_parameters()}
    groups = layer_groups(backbone, [head], 1.0, decay)
    return {names[id(p)]: g["lr"] for g in groups for p in g["params"]}


def test_biases_and_norms_do_not_decay() -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 2, bias=False))
    net[2].requires_grad_(False)
    decay, plain = parameter_groups(net)
    assert [p.ndim for p in decay["params"]] == [2]
    assert [p.ndim for p in plain["params"]] == [1, 1, 1]
    assert plain["weight_decay"] == 0.0
    assert "weight_decay" not in decay
    assert parameter_groups(net.requires_grad_(False)) == []


@pytest.mark.parametrize("backbone", backbones(), ids=lambda b: type(b).__name__)
def test_every_parameter_stands_in_one_group_and_deeper_is_never_slower(backbone: nn.Module) -> None:
    head = nn.Linear(backbone.num_features, 2)
    found = rates(backbone, head)
    assert found.keys() == {n for n, _ in backbone.named_parameters()} | {"head.weight", "head.bias"}
    total = sum(len(g["params"]) for g in layer_groups(backbone, [head], 1.0, 0.5))
    assert total == len(found)
    in_order = [found[n] for n, _ in backbone.named_parameters()]
    assert in_order == sorted(in_order)
    assert found["head.weight"] == 1.0


def test_vit_has_the_rates_of_mae() -> None:
    found = rates(backbones()[0], nn.Linear(32, 2))
    assert found["net.pos_embed"] == found["net.patch_embed.proj.weight"] == 0.5 ** 4
    assert [found[f"net.blocks.{i}.attn.qkv.weight"] for i in range(3)] == [0.5 ** 3, 0.5 ** 2, 0.5]
    assert found["net.norm.weight"] == 1.0


def test_resnet_counts_its_blocks_from_the_head() -> None:
    found = rates(backbones()[1], nn.Linear(64, 2))
    assert found["net.layer4.1.conv1.weight"] == 0.5
    assert found["net.layer4.0.conv1.weight"] == 0.25
    assert found["net.layer1.0.conv1.weight"] == 0.5 ** 8
    assert found["net.conv1.weight"] == 0.5 ** 9


def test_wav2vec2_counts_transformer_before_convolutions() -> None:
    found = rates(backbones()[2], nn.Linear(32, 2))
    layers = [found[f"net.encoder.transformer.layers.{i}.attention.k_proj.weight"] for i in range(3)]
    assert layers == [0.125, 0.25, 0.5]
    convolutions = [found[f"net.feature_extractor.conv_layers.{i}.conv.weight"] for i in range(7)]
    assert max(convolutions) < found["net.encoder.feature_projection.projection.weight"] < min(layers)


def test_an_optimizer_takes_the_groups() -> None:
    net = backbones()[0]
    optimizer = torch.optim.AdamW(layer_groups(net, [], 1e-3, 0.75), lr=1.0)
    assert max(g["lr"] for g in optimizer.param_groups) == 1e-3


@pytest.mark.parametrize("make", [partial(torch.optim.AdamW, lr=1e-2), partial(torch.optim.SGD, lr=0.1, momentum=0.9)])
@pytest.mark.parametrize(("layout", "same"), [(torch.channels_last, True), (torch.contiguous_format, False)])
def test_the_fused_step_wants_gradients_that_lie_as_their_weights(make: Any, layout: torch.memory_format, same: bool) -> None:
    """PyTorch's kernel for the CPU mixes up others without a word; what autograd makes lies right, see `every_parameter_learns`."""
    weights = []
    for fused in (True, False):
        torch.manual_seed(0)
        net = ResNet(Spec("images", (3, 16, 16), ("a",)), width=8)
        optimizer = make(parameter_groups(net), fused=fused)
        for _ in range(3):
            for p in net.parameters():
                grad = torch.randn(p.shape)
                p.grad = grad.contiguous(memory_format=layout) if p.ndim == 4 else grad
            optimizer.step()
        weights.append([p.detach().clone() for p in net.parameters()])
    assert all(torch.allclose(a, b, rtol=1e-4, atol=1e-6) for a, b in zip(*weights, strict=True)) is same
