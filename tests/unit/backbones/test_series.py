"""Backbones for time series."""

from __future__ import annotations

import pytest
import torch

from ssl_suite.backbones.series import SeriesConvNet, SeriesTransformer
from ssl_suite.batch import Spec

SPEC = Spec("series", (3, 53))
CASES = [
    (SeriesConvNet, {"depth": 2, "width": 16, "num_features": 24}),
    (SeriesConvNet, {"depth": 2, "width": 16, "pool": "mean", "norm": "layer"}),
    (SeriesConvNet, {"depth": 2, "width": 16, "norm": "none"}),
    (SeriesTransformer, {"width": 16, "depth": 2, "heads": 2}),
]


@pytest.mark.parametrize(("cls", "kwargs"), CASES)
def test_shapes_and_gradients(cls, kwargs):
    net, x = cls(SPEC, **kwargs), torch.randn(4, 3, 53)
    h, tokens = net(x), net.tokens(x)
    assert h.shape == (4, net.num_features)
    assert tokens.shape == (4, int(net.token_lengths(torch.tensor([53]))[0]), net.num_features)
    (h * torch.randn_like(h)).sum().backward()
    assert not [name for name, p in net.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]


@pytest.mark.parametrize(("cls", "kwargs"), CASES)
def test_padding_changes_nothing(cls, kwargs):
    net, x = cls(SPEC, **kwargs).eval(), torch.randn(3, 3, 53)
    length = torch.tensor([53, 30, 9])
    together, tokens, count = net(x, length), net.tokens(x, length), net.token_lengths(length)
    for i, n in enumerate(length.tolist()):
        torch.testing.assert_close(together[i], net(x[i:i + 1, :, :n])[0], atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(tokens[i, :count[i]], net.tokens(x[i:i + 1, :, :n])[0], atol=1e-4, rtol=1e-4)
    assert not torch.allclose(net(x)[2], together[2], atol=1e-3)       # control: without lengths the rest counts


@pytest.mark.parametrize(("cls", "kwargs"), CASES[:3])
def test_forward_is_the_pooled_sequence_of_stages(cls, kwargs):
    net, x, length = cls(SPEC, **kwargs).eval(), torch.randn(2, 3, 53), torch.tensor([53, 20])
    maps = x
    for stage in net.stages:
        maps = stage(maps, length)
    torch.testing.assert_close(net.pool(maps, length), net(x, length))
    assert {id(p) for stage in net.stages for p in stage.parameters()} == {id(p) for p in net.parameters()}


def test_transformer_patches_and_subset():
    net, x = SeriesTransformer(SPEC, patch=8, width=16, depth=2, heads=2).eval(), torch.randn(2, 3, 53)
    length = torch.tensor([53, 17])
    patches = net.patches(x, length)
    assert net.grid == (7,)
    assert patches.shape == (2, 7, net.patch_dim)
    torch.testing.assert_close(patches[0, 1].unflatten(0, (3, 8)), x[0, :, 8:16])
    assert patches[1, 2].unflatten(0, (3, 8))[:, 1:].abs().sum() == 0
    assert net.patch_valid(x, length).sum(1).tolist() == [7, 3]
    assert net.patch_valid(x, None) is None
    assert net.encode(net.embed(x, length)[:, 1:4], net.patch_valid(x, length)[:, 1:4]).shape == (2, 3, 16)


def test_a_series_longer_than_the_specification():
    for cls, kwargs in CASES:
        assert cls(SPEC, **kwargs).eval()(torch.randn(2, 3, 90)).isfinite().all()


def test_mistakes_are_told():
    with pytest.raises(ValueError, match="pool must be"):
        SeriesConvNet(SPEC, pool="median")
    with pytest.raises(ValueError, match="width=30"):
        SeriesTransformer(SPEC, width=30, heads=4)
