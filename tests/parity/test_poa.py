"""POA: slices against the rules of the paper written out, extracted nets against slices, and the loss against its equations."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_suite.backbones.images import ViT
from ssl_suite.batch import Batch, Modality, Spec
from ssl_suite.functional.sinkhorn import sinkhorn
from ssl_suite.methods.pretraining.poa import POA
from ssl_suite.nn.elastic import Slices, extract, kept_blocks, sizes
from ssl_suite.testing import tiny_backbone, tiny_batch, tiny_spec, tiny_views
from tests.parity.tiny import gradients

SPEC = Spec("images", (1, 8, 8), num_samples=100)


def vit(pool: Any = "class") -> ViT:
    torch.manual_seed(0)
    net = ViT(SPEC, patch_size=4, width=48, depth=5, heads=3, pool=pool)
    with torch.no_grad():
        for p in net.parameters():
            p.add_(0.05 * torch.randn_like(p))
    return net


def make(**options: Any) -> POA:
    small: dict[str, Any] = {"local_crops": 2, "num_prototypes": (6, 10), "hidden_dim": 16, "bottleneck_dim": 8}
    method = POA(vit("mean"), tiny_views(tiny_spec("images")), **{**small, **options})
    with torch.no_grad():
        for p in [*method.teacher_heads.parameters(), *method.teacher_backbone.parameters()]:
            p.add_(0.05 * torch.randn_like(p))  # a teacher unlike the student
    return method


def batch(size: int = 6) -> Batch:
    return tiny_batch(tiny_spec("images"), size, labels=False)


def elastic_linear(layer: torch.nn.Linear, x: Tensor, outputs: int) -> Tensor:
    """Equation 2: the first rows and columns, the input multiplied by the ratio of widths."""
    w = x.shape[-1]
    return x * (layer.in_features / w) @ layer.weight[:outputs, :w].T + layer.bias[:outputs]


def written_out(net: ViT, x: Tensor, width: int, blocks: list[int]) -> Tensor:
    """The class token of a slice of timm's ViT."""
    inner, head = net.net, 16
    patches = F.conv2d(x, inner.patch_embed.proj.weight[:width], inner.patch_embed.proj.bias[:width], 4).flatten(2).transpose(1, 2)
    h = torch.cat([inner.cls_token[..., :width].expand(len(x), -1, -1), patches], dim=1) + inner.pos_embed[..., :width]

    def norm(layer: torch.nn.LayerNorm, x: Tensor) -> Tensor:
        return F.layer_norm(x, (width,), layer.weight[:width], layer.bias[:width], layer.eps)

    for block in (inner.blocks[i] for i in blocks):
        y = norm(block.norm1, h)
        q, k, v = (torch.nn.Linear(48, 48) for _ in range(3))
        for i, one in enumerate((q, k, v)):
            one.weight.data = block.attn.qkv.weight[48 * i:48 * (i + 1)]
            one.bias.data = block.attn.qkv.bias[48 * i:48 * (i + 1)]
        q, k, v = (elastic_linear(one, y, width).unflatten(2, (-1, head)).transpose(1, 2) for one in (q, k, v))
        seen = ((q @ k.transpose(2, 3)) / head ** 0.5).softmax(-1) @ v
        h = h + elastic_linear(block.attn.proj, seen.transpose(1, 2).flatten(2), width)
        h = h + elastic_linear(block.mlp.fc2, F.gelu(elastic_linear(block.mlp.fc1, norm(block.norm2, h), 4 * width)), width)
    return norm(inner.norm, h)[:, 0]


@pytest.mark.parametrize(("width", "depth", "blocks"), [(16, 2, [0, 4]), (32, 3, [0, 2, 4]), (32, 4, [0, 1, 2, 4]),
                                                        (48, 5, [0, 1, 2, 3, 4])])
def test_a_slice_is_the_papers(width: int, depth: int, blocks: list[int]) -> None:
    net, x = vit(), torch.randn(3, 1, 8, 8)
    assert kept_blocks(depth, 5) == blocks == np.linspace(0, 4, depth).astype(int).tolist()
    found = Slices(net, [(width, depth)])(net, width, depth, x)
    torch.testing.assert_close(found, written_out(net, x, width, blocks), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("modality", ["images", "speech", "series"])
def test_an_extracted_net_equals_the_slice(modality: Modality) -> None:
    torch.manual_seed(0)
    spec = tiny_spec(modality)
    net, length = tiny_backbone("tokens", spec), None
    x = torch.randn(3, *spec.shape)
    if modality != "images":
        length = torch.tensor([spec.shape[-1], spec.shape[-1] // 2, spec.shape[-1]])
    small = extract(net, 16, 1)
    assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in net.parameters()) / 2
    with torch.no_grad():
        torch.testing.assert_close(small(x, length), Slices(net, [(16, 1)])(net, 16, 1, x, length), atol=1e-6, rtol=1e-6)
        torch.testing.assert_close(extract(net, 32, 2)(x, length), net(x, length), atol=1e-6, rtol=1e-6)
    assert small.state_dict().keys() <= net.state_dict().keys()


def test_value_and_gradient_are_those_of_the_equations() -> None:
    method, b = make(smallest=(0.3, 0.5)), batch()
    method.size = lambda step: (16, 3)  # type: ignore[method-assign]
    twin = copy.deepcopy(method)
    loss = method.step(b).loss
    loss.backward()
    views = twin.views(b, "crop", "crop", "local", "local")
    full = [twin.backbone(x) for x in views]
    cut = [Slices(twin.backbone, [(16, 3)])(twin.backbone, 16, 3, x) for x in views]

    def log_p(head: Any, h: Tensor, elastic: bool = False) -> Tensor:
        first, *rest = head.body
        z = elastic_linear(first, h, first.out_features) if elastic else first(h)
        for layer in rest:
            z = layer(z)
        return (F.normalize(z) @ F.normalize(head.prototypes.weight).T / 0.1).log_softmax(1)

    total = torch.zeros(())
    for head, teacher in zip(twin.heads, twin.teacher_heads, strict=True):
        with torch.no_grad():
            t = sinkhorn(teacher(torch.cat([twin.teacher_backbone(x) for x in views[:2]])), 0.04).chunk(2)
        whole, part = [log_p(head, h) for h in full], [log_p(head, h, elastic=True) for h in cut]
        pairs = [(i, j) for i in range(2) for j in range(4) if i != j]
        cross = [torch.stack([-(t[i] * s[j]).sum(1).mean() for i, j in pairs]).mean() for s in (whole, part)]
        same = [-(w.detach().exp() * p).sum(1).mean() for w, p in zip(whole, part, strict=True)]
        total = total + (0.8 * cross[0] + 0.2 * (cross[1] + (same[0] + same[1]) / 2 + (same[2] + same[3]) / 2)) / 2
    total.backward()
    torch.testing.assert_close(loss, total)
    theirs = gradients(twin)
    for name, grad in gradients(method).items():
        torch.testing.assert_close(grad, theirs[name], atol=1e-5, rtol=1e-3)


def test_small_sizes_are_drawn_oftener_and_each_comes_in_turn() -> None:
    found = sizes(vit(), (0.3, 0.6), 3.0)
    assert {size: found.count(size) for size in found} == {
        (16, 3): 9, (16, 4): 6, (16, 5): 3, (32, 3): 6, (32, 4): 4, (32, 5): 2, (48, 3): 3, (48, 4): 2}
    method = make(smallest=(0.3, 0.6))
    turns = [[method.size(step + len(found) * turn) for step in range(len(found))] for turn in range(2)]
    assert sorted(turns[0]) == sorted(turns[1]) == sorted(found)
    assert turns[0] != turns[1]
    assert turns[0] == [make(smallest=(0.3, 0.6)).size(step) for step in range(len(found))]


@pytest.mark.parametrize(("options", "message"), [
    ({"smallest": (1.0, 1.0)}, "leaves no size"), ({"smallest": (0.0, 1.0)}, "smallest"), ({"favour": 0.5}, "favour"),
    ({"intact_weight": 2.0}, "intact_weight"), ({"temperature": 0.0}, "temperature")])
def test_bad_values_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(**options)


def test_a_width_of_half_a_head_is_refused() -> None:
    with pytest.raises(ValueError, match="multiple of 16"):
        extract(vit(), 24, 2)
