"""Backbones for pictures."""

from __future__ import annotations

import copy

import pytest
import timm
import torch
from timm.models.vision_transformer import VisionTransformer
from torchvision.models.segmentation import deeplabv3_resnet50

from ssl_suite.backbones.images import CifarResNet, ConvNet, PixelEncoder, ResNet, ViT, WideResNet
from ssl_suite.backbones.segmentation import DeepLabV3, UNet
from ssl_suite.batch import Spec
from ssl_suite.nn.heads import PixelHead

SMALL = Spec("images", (3, 16, 24))
VIT = {"width": 32, "depth": 2, "heads": 2}
CASES = [
    (ViT, VIT), (ViT, {**VIT, "pool": "class"}), (ViT, {**VIT, "name": "vit_small_patch14_reg4_dinov2", "depth": 1}),
    (ResNet, {"width": 8}), (ResNet, {"width": 16, "norm": "group", "small_stem": False}),
    (ResNet, {"name": "resnet50", "width": 8}), (WideResNet, {"depth": 10, "widen": 1}),
    (CifarResNet, {"width": 8}), (CifarResNet, {"norm": "batch"}), (ConvNet, {}),
    (ConvNet, {"norm": "group", "widths": (8, 16)}), (PixelEncoder, {"layers": 3, "width": 8, "num_features": 16}),
    (PixelEncoder, {"layers": 2, "width": 8, "num_features": 16, "halving": 2}),
    (UNet, {"width": 8, "depth": 2}), (UNet, {"width": 8, "depth": 1, "norm": "group"}),
]
POOLED = {ConvNet: {"linear.weight", "linear.bias"},
          PixelEncoder: {"project.1.weight", "project.1.bias", "project.2.weight", "project.2.bias"}}
"""Nets of one size of picture, and the weights with which they pool."""
STAGED = [case for case in CASES if case[0] is not ViT]


@pytest.mark.parametrize(("cls", "kwargs"), CASES)
def test_shapes_and_gradients(cls, kwargs):
    net, x = cls(SMALL, **kwargs), torch.randn(3, *SMALL.shape)
    h, tokens = net(x), net.tokens(x)
    assert h.shape == (3, net.num_features)
    assert tokens.shape[:2] == (3, int(net.token_lengths(torch.tensor([24]))[0]))
    (h * torch.randn_like(h)).sum().backward()
    still = [name for name, p in net.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert not still


@pytest.mark.parametrize(("cls", "kwargs"), STAGED)
def test_forward_is_the_pooled_sequence_of_stages(cls, kwargs):
    net, x = cls(SMALL, **kwargs).eval(), torch.randn(2, *SMALL.shape)
    maps = x
    for stage in net.stages:
        maps = stage(maps)
    torch.testing.assert_close(net.pool(maps), net(x))
    held = {id(p) for stage in net.stages for p in stage.parameters()}
    rest = {name for name, p in net.named_parameters() if id(p) not in held}
    assert rest == POOLED.get(cls, set())


def test_a_copied_stage_is_a_branch_of_its_own():
    net, x = CifarResNet(SMALL, width=8), torch.randn(2, *SMALL.shape)
    before, branch = net(x), copy.deepcopy(net.stages[2:])
    with torch.no_grad():
        for p in branch[0].parameters():
            p.zero_()
    torch.testing.assert_close(net(x), before)


@pytest.mark.parametrize(("cls", "kwargs"), [c for c in CASES if c[0] not in POOLED])
def test_another_size_of_picture(cls, kwargs):
    net, patch = cls(SMALL, **kwargs).eval(), 4
    assert net(torch.randn(2, 3, 2 * patch, 3 * patch)).shape == (2, net.num_features)


@pytest.mark.parametrize("cls", [ResNet, WideResNet, CifarResNet, ConvNet, UNet])
def test_odd_sizes(cls):
    spec = Spec("images", (1, 9, 13))
    net = cls(spec).eval()
    assert net(torch.randn(2, 1, 9, 13)).shape == (2, net.num_features)
    assert net.tokens(torch.randn(2, 1, 9, 13)).shape[1] == int(net.token_lengths(torch.tensor([13]))[0])


def test_deeplab_weights_load_into_plain_torchvision_and_agree_with_it():
    ours = DeepLabV3(Spec("images", (3, 32, 40))).eval()
    head, x = PixelHead(ours.num_features, 5), torch.randn(2, 3, 33, 40)
    plain = deeplabv3_resnet50(weights=None, weights_backbone=None, num_classes=5).eval()
    last = {"classifier.4.weight": head.weight, "classifier.4.bias": head.bias}
    plain.load_state_dict({**ours.net.state_dict(), **last}, strict=True)
    with torch.no_grad():
        torch.testing.assert_close(head(ours.maps(x), x), plain(x)["out"], atol=1e-5, rtol=1e-5)
        assert ours.maps(x).shape[2:] == ours.grid_of(33, 40)


def test_vit_weights_load_into_plain_timm_and_agree_with_it():
    spec, x = Spec("images", (3, 16, 16)), torch.randn(2, 3, 16, 16)
    ours = ViT(spec, pool="class", depth=2).eval()
    plain = timm.create_model("vit_tiny_patch16_224", img_size=16, patch_size=4, num_classes=0, depth=2).eval()
    plain.load_state_dict(ours.net.state_dict(), strict=True)
    torch.testing.assert_close(ours(x), plain(x), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(ours.tokens(x), plain.forward_features(x)[:, 1:], atol=1e-5, rtol=1e-5)


def test_vit_with_registers_agrees_with_timm():
    name, spec, x = "vit_small_patch14_reg4_dinov2", Spec("images", (3, 16, 16)), torch.randn(2, 3, 16, 16)
    ours = ViT(spec, name=name, pool="class", depth=2, width=48, heads=3).eval()
    plain = timm.create_model(name, img_size=16, patch_size=4, num_classes=0, depth=2, embed_dim=48, num_heads=3).eval()
    plain.load_state_dict(ours.net.state_dict(), strict=True)
    assert isinstance(plain, VisionTransformer)
    assert ours.num_prefix_tokens == 5
    torch.testing.assert_close(ours(x), plain(x), atol=1e-5, rtol=1e-5)


def test_vit_interpolates_positions_as_timm_does():
    ours = ViT(Spec("images", (3, 16, 16)), pool="class", **VIT).eval()
    x = torch.randn(2, 3, 8, 12)
    torch.testing.assert_close(ours(x), ours.net(x), atol=1e-5, rtol=1e-5)


def test_resnet_weights_load_into_plain_timm_and_agree_with_it():
    spec, x = Spec("images", (3, 32, 32)), torch.randn(2, 3, 32, 32)
    ours = ResNet(spec, small_stem=False).eval()
    plain = timm.create_model("resnet18", num_classes=0).eval()
    plain.load_state_dict(ours.net.state_dict(), strict=True)
    torch.testing.assert_close(ours(x), plain(x))


def test_vit_patches_are_what_the_embedding_sees():
    net, x = ViT(SMALL, **VIT), torch.randn(2, *SMALL.shape)
    patches = net.patches(x)
    assert patches.shape == (2, 24, net.patch_dim)
    assert net.grid == (4, 6)
    torch.testing.assert_close(patches[0, 7].unflatten(0, (3, 4, 4)), x[0, :, 4:8, 4:8])
    projection = net.net.patch_embed.proj
    embedded = patches @ projection.weight.flatten(1).T + projection.bias + net.net.pos_embed[:, 1:]
    torch.testing.assert_close(net.embed(x), embedded, atol=1e-5, rtol=1e-5)


def test_vit_encodes_a_subset_and_ignores_invalid_tokens():
    net, x = ViT(SMALL, **VIT).eval(), torch.randn(2, *SMALL.shape)
    kept = net.embed(x)[:, ::3]
    alone = net.encode(kept)
    assert alone.shape == (2, 1 + 8, 32)
    padded = torch.cat([kept, torch.randn(2, 3, 32)], dim=1)
    valid = torch.arange(11).expand(2, -1) < 8
    torch.testing.assert_close(net.encode(padded, valid)[:, :9], alone, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(net.encode(padded)[:, :9], alone, atol=1e-3)  # control: unmasked they count


@pytest.mark.parametrize(("net", "count"), [
    (lambda: WideResNet(Spec("images", (3, 32, 32)), depth=28, widen=2), 1467610),
    (lambda: CifarResNet(Spec("images", (3, 32, 32)), blocks=4), None),
])
def test_sizes_are_those_of_the_literature(net, count):
    net = net()
    convs = sum(isinstance(m, torch.nn.Conv2d) and m.kernel_size == (3, 3) for m in net.modules())
    assert convs + 1 == (28 - 3 + 1 if count else 26)       # a WRN's depth counts its three 1x1 shortcuts
    if count:                                               # with FixMatch's ten-class head
        assert sum(p.numel() for p in net.parameters()) + 1290 == count


def test_wide_resnet_is_fixmatchs():
    net = WideResNet(SMALL, depth=10)
    norms = [m for m in net.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert {m.momentum for m in norms} == {0.001}
    x = torch.randn(2, 16, 4, 4)
    block = net.groups[0][0].eval()
    with torch.no_grad():
        block.conv2.weight.zero_()
    active = torch.nn.functional.leaky_relu(block.norm1(x), 0.1)
    torch.testing.assert_close(block(x), block.shortcut(active))               # the first block's shortcut is activated
    later = net.groups[1][0].eval()
    with torch.no_grad():
        later.conv2.weight.zero_()
    y = torch.randn(2, 32, 4, 4)
    torch.testing.assert_close(later(y), later.shortcut(y))                    # later ones are not


def test_group_norm_looks_at_no_other_sample():
    x = torch.randn(4, *SMALL.shape)
    nets = [CifarResNet(SMALL), ResNet(SMALL, width=8, norm="group"), CifarResNet(SMALL, norm="batch")]
    for net, same in zip(nets, [True, True, False], strict=True):
        assert torch.allclose(net(x)[:1], net(x[:1]), atol=1e-4) is same


def test_pixel_encoder_sees_the_centre_of_a_larger_picture():
    spec, x = Spec("images", (1, 12, 16)), torch.rand(2, 1, 12, 16)
    net = PixelEncoder(spec, layers=2, width=4, num_features=8, crop=10, halving=2)
    assert net.grid == net.grid_of(12, 16) == (1, 1)
    assert torch.equal(net(x), net(x[:, :, 1:11, 3:13]))
    with pytest.raises(ValueError, match=r"layers=3.*10x10 pixels"):
        PixelEncoder(spec, layers=3, crop=10, halving=3)


@pytest.mark.parametrize(("make", "message"), [
    (lambda: ViT(Spec("images", (3, 30, 32))), r"30x32 pixels.*4x4.*patch_size"),
    (lambda: ViT(SMALL, **VIT)(torch.zeros(1, 3, 16, 22)), r"16x22 pixels"),
    (lambda: ViT(SMALL, width=30, heads=4), r"width=30.*heads=4"),
    (lambda: ViT(SMALL, pool="max"), r"pool.*'max'"),
    (lambda: ViT(SMALL, name="vit_base_patch16_siglip_224", width=32, depth=1, heads=2), r"siglip"),
    (lambda: ResNet(SMALL, norm="layer"), r"norm.*'layer'"),
    (lambda: ResNet(SMALL, width=12, norm="group"), r"width=12"),
    (lambda: WideResNet(SMALL, depth=27), r"depth=27"),
    (lambda: ConvNet(SMALL)(torch.zeros(1, 3, 32, 32)), r"built for pictures of"),
    (lambda: PixelEncoder(SMALL, layers=3)(torch.zeros(1, 3, 32, 32)), r"built for pictures of"),
    (lambda: UNet(SMALL, depth=0), r"depth=0"),
    (lambda: UNet(SMALL, width=12, norm="group"), r"width=12"),
    (lambda: DeepLabV3(Spec("images", (1, 16, 16))), r"three channels.*backbone=unet"),
    (lambda: PixelEncoder(SMALL), r"layers=11 must be at least 1 and few enough"),
])
def test_mistakes_are_told(make, message):
    with pytest.raises(ValueError, match=message):
        make()
