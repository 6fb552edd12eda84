"""Compiled networks, and activations that are computed twice."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ssl_suite.backbones import images, segmentation, series, speech
from ssl_suite.batch import Spec
from ssl_suite.nn.blocks import attention_blocks, checkpoint_blocks, compile_networks
from ssl_suite.testing import tiny_spec

PICTURES = Spec("images", (3, 16, 16), ("a", "b"))
SPEECH, SERIES = tiny_spec("speech"), tiny_spec("series")
NETS: dict[str, Callable[[], nn.Module]] = {
    "vit": lambda: images.ViT(PICTURES, patch_size=4, width=32, depth=3, heads=2),
    "speech transformer": lambda: speech.SpeechTransformer(SPEECH, n_mels=8, patch_frames=2, width=32, depth=2, heads=2),
    "series transformer": lambda: series.SeriesTransformer(SERIES, patch=4, width=32, depth=2, heads=2),
    "wav2vec2": lambda: speech.Wav2Vec2(SPEECH, width=32, depth=2, heads=2, conv_channels=16, position_kernel=8, position_groups=2,
                                        conv_layers=((10, 5), (3, 2), (3, 2)), dropout=0.0, layerdrop=0.0),
    "resnet": lambda: images.ResNet(PICTURES, width=8), "wide": lambda: images.WideResNet(PICTURES, depth=10, widen=1),
    "cifar": lambda: images.CifarResNet(PICTURES, width=8), "convnet": lambda: images.ConvNet(PICTURES, widths=(8, 16)),
    "unet": lambda: segmentation.UNet(PICTURES, width=8, depth=2),
    "speech convnet": lambda: speech.SpeechConvNet(SPEECH, n_mels=8, widths=(8, 16)),
    "series convnet": lambda: series.SeriesConvNet(SERIES, width=16, depth=2, num_features=16)}
TRANSFORMERS = [name for name in NETS if "transformer" in name or name in ("vit", "wav2vec2")]


def rows(net: Any, n: int = 4) -> tuple[Tensor, Tensor | None]:
    """Samples for a network; those of unequal length end early."""
    x = torch.randn(n, *net.spec.shape, generator=torch.Generator().manual_seed(1))
    steps = net.spec.shape[-1]
    return x, None if net.spec.modality == "images" else torch.arange(steps - n + 1, steps + 1)


def gradients(net: nn.Module) -> tuple[Tensor, dict[str, Tensor]]:
    """A loss and its gradients."""
    torch.manual_seed(3)
    net.zero_grad()
    loss = net(*rows(net)).square().mean()
    loss.backward()
    return loss.detach(), {name: p.grad.clone() for name, p in net.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("name", NETS)
def test_compiled_in_one_graph_and_equal(name: str) -> None:
    """``fullgraph`` raises at a graph break; ``aot_eager`` runs the traced forward and backward passes without a C++ compiler."""
    torch._dynamo.reset()
    torch.manual_seed(0)
    plain = NETS[name]()
    net = copy.deepcopy(plain)
    compile_networks(net, fullgraph=True, backend="aot_eager")
    assert list(net.state_dict()) == list(plain.state_dict())
    loss, expected = gradients(plain)
    ours, found = gradients(net)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] >= 1, "nothing was compiled"
    assert ours.item() == pytest.approx(loss.item(), rel=1e-5)
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, rtol=1e-4, atol=1e-6, msg=lambda m, k=key: f"{k}: {m}")


def test_control_a_graph_break_raises() -> None:
    class Breaks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attn = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            torch._dynamo.graph_break()
            return self.attn(x)

    net = nn.Sequential(Breaks())
    compile_networks(net, fullgraph=True, backend="eager")
    with pytest.raises(torch._dynamo.exc.Unsupported):
        net(torch.ones(2, 4))


def test_a_copy_of_a_compiled_net_uses_its_own_weights() -> None:
    for name in ("vit", "convnet"):
        net = NETS[name]().eval()
        compile_networks(net, backend="eager")
        other = copy.deepcopy(net)
        with torch.no_grad():
            other.get_parameter(next(n for n, _ in other.named_parameters())).add_(1.0)
            assert not torch.equal(net(*rows(net)), other(*rows(net)))


def saved_bytes(net: nn.Module) -> int:
    """What the forward pass keeps for the backward pass, weights left out."""
    weights, kept = {p.data_ptr() for p in net.parameters()}, {}

    def pack(x: Tensor) -> Tensor:
        if x.untyped_storage().data_ptr() not in weights:
            kept[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        net(*rows(net, 32)).sum()
    return sum(kept.values())


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_checkpointed_gradients_are_the_same_with_half_the_memory(name: str) -> None:
    torch.manual_seed(0)
    plain = NETS[name]()
    for part in plain.modules():
        if isinstance(part, nn.Dropout):
            part.p = 0.1
    net = copy.deepcopy(plain)
    checkpoint_blocks(net)
    assert list(net.state_dict()) == list(plain.state_dict())
    (loss, expected), (ours, found) = gradients(plain), gradients(net)
    assert torch.equal(ours, loss)
    assert expected.keys() == found.keys()
    assert all(torch.equal(found[key], value) for key, value in expected.items())
    if name == "vit":
        assert saved_bytes(net) < saved_bytes(plain) / 2


def test_a_copy_of_a_checkpointed_net_uses_its_own_weights() -> None:
    net = NETS["vit"]()
    checkpoint_blocks(net)
    other = copy.deepcopy(net)
    with torch.no_grad():
        for p in attention_blocks(other)[0].parameters():
            p.add_(1.0)
    assert not torch.equal(net(*rows(net)), other(*rows(net)))


def test_checkpointing_needs_a_transformer() -> None:
    with pytest.raises(ValueError, match="needs a transformer"):
        checkpoint_blocks(NETS["resnet"]())
