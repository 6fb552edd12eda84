"""Backbones for speech."""

from __future__ import annotations

import copy
import math
import warnings

import pytest
import torch

from ssl_suite.backbones.speech import LogMel, SpeechConvNet, SpeechTransformer, Wav2Vec2
from ssl_suite.batch import Spec

SPEC = Spec("speech", (4000,), rate=8000)
W2V = {"conv_channels": 16, "width": 32, "depth": 2, "heads": 2, "position_kernel": 8, "position_groups": 2,
       "dropout": 0.0, "layerdrop": 0.0}
CASES = [
    (SpeechTransformer, {"n_mels": 16, "width": 16, "depth": 2, "heads": 2}),
    (SpeechConvNet, {"n_mels": 16, "widths": (8, 16)}),
    (SpeechConvNet, {"n_mels": 15, "widths": (8, 16, 16), "norm": "layer"}),
    (Wav2Vec2, {**W2V, "extractor_mode": "layer_norm", "conv_bias": True, "pre_norm": True}),
    (Wav2Vec2, {**W2V, "extractor_mode": "layer_norm"}),
]


@pytest.mark.parametrize(("cls", "kwargs"), CASES)
def test_shapes_and_gradients(cls, kwargs):
    net, x = cls(SPEC, **kwargs), torch.randn(3, 3999)
    h, tokens = net(x), net.tokens(x)
    assert h.shape == (3, net.num_features)
    assert tokens.shape == (3, int(net.token_lengths(torch.tensor([3999]))[0]), net.num_features)
    (h * torch.randn_like(h)).sum().backward()
    assert not [name for name, p in net.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]


@pytest.mark.parametrize(("cls", "kwargs"), CASES)
def test_padding_changes_nothing(cls, kwargs):
    net, x, length = cls(SPEC, **kwargs).eval(), torch.randn(3, 4000), torch.tensor([4000, 2611, 900])
    together, tokens, count = net(x, length), net.tokens(x, length), net.token_lengths(length)
    for i, n in enumerate(length.tolist()):
        torch.testing.assert_close(together[i], net(x[i:i + 1, :n])[0], atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(tokens[i, :count[i]], net.tokens(x[i:i + 1, :n])[0], atol=1e-4, rtol=1e-4)
    assert not torch.allclose(net(x)[2], together[2], atol=1e-4)       # control: without lengths the rest counts


def test_group_norm_front_end_is_moved_by_padding():
    """The published Base front-end normalises over time: the reason why padded data need layer norm."""
    net = Wav2Vec2(SPEC, **W2V).eval()
    x = torch.nn.functional.pad(torch.randn(1, 2000), (0, 2000))
    z, frames = net.extract(x, torch.tensor([2000]))
    assert not torch.allclose(z[:, :int(frames[0])], net.extract(x[:, :2000])[0], atol=1e-2)


@pytest.mark.parametrize(("cls", "kwargs"), CASES)
def test_a_row_too_short_for_one_frame_stays_finite(cls, kwargs):
    net, x, length = cls(SPEC, **kwargs), torch.randn(2, 4000), torch.tensor([4000, 50])
    net(x, length).sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in net.parameters())


def test_convnet_forward_is_the_pooled_sequence_of_stages():
    net, x, length = SpeechConvNet(SPEC, n_mels=16).eval(), torch.randn(2, 4000), torch.tensor([4000, 1500])
    maps = x
    for stage in net.stages:
        maps = stage(maps, length)
    torch.testing.assert_close(net.pool(maps, length), net(x, length))


@pytest.mark.parametrize("rate", [8000, 11025, 16000, 22050])
def test_log_mel_frames(rate):
    with warnings.catch_warnings():
        warnings.simplefilter("error")                      # torchaudio warns of bands that hold no frequency
        mel = LogMel(Spec("speech", (rate,), rate=rate))
    x = torch.randn(2, rate) * torch.tensor([[1.0], [0.01]])
    out = mel(x)
    assert out.shape == (2, 64, int(mel.frame_lengths(torch.tensor([rate]))[0]))
    assert abs(out.shape[2] - 98) <= 1
    torch.testing.assert_close(out.mean(dim=(1, 2)), torch.zeros(2), atol=1e-4, rtol=0)
    torch.testing.assert_close(out.square().mean(dim=(1, 2)), torch.ones(2), atol=1e-3, rtol=0)


def test_log_mel_forgets_loudness_and_keeps_pitch():
    mel, t = LogMel(SPEC), torch.arange(4000) / 8000
    low, high = torch.sin(2 * math.pi * 300 * t), torch.sin(2 * math.pi * 2000 * t)
    noise = torch.randn(1, 4000)
    torch.testing.assert_close(mel(noise), mel(0.3 * noise), atol=1e-2, rtol=0)
    assert mel(high[None]).mean(2).argmax() > mel(low[None]).mean(2).argmax() + 10


def test_log_mel_stays_float32_under_autocast():
    mel, x = LogMel(SPEC, 16), torch.randn(1, 4000)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = mel(x)
    torch.testing.assert_close(out, mel(x))


def test_speech_transformer_patches_and_subset():
    net = SpeechTransformer(SPEC, n_mels=16, width=16, depth=1, heads=2).eval()
    x, length = torch.randn(2, 4000), torch.tensor([4000, 999])
    patches, valid = net.patches(x, length), net.patch_valid(x, length)
    mel = net.log_mel(x, length)
    torch.testing.assert_close(patches[0, 2].unflatten(0, (16, 4)), mel[0, :, 8:12])
    assert patches.shape[1:] == (net.grid[0], net.patch_dim)
    assert valid.sum(1).tolist() == net.token_lengths(length).tolist()
    assert net.encode(net.embed(x, length)[:, ::2], valid[:, ::2]).shape[1] == -(-net.grid[0] // 2)


def test_wav2vec2_loads_into_plain_torchaudio_and_agrees_with_it():
    from torchaudio.models import wav2vec2_model
    ours = Wav2Vec2(SPEC, **W2V, extractor_mode="layer_norm").eval()
    convs = [(16, kernel, stride) for kernel, stride in ours.conv_layers]
    plain = wav2vec2_model("layer_norm", convs, False, 32, 0.0, 8, 2, 2, 2, 0.0, 128, 0.0, 0.0, False, 0.0, None).eval()
    plain.load_state_dict(ours.net.state_dict(), strict=True)
    x, length = torch.randn(2, 4000), torch.tensor([4000, 2000])
    expected, frames = plain(x, length)
    assert frames.tolist() == ours.token_lengths(length).tolist()
    for i, n in enumerate(frames.tolist()):
        torch.testing.assert_close(ours.tokens(x, length)[i, :n], expected[i, :n], atol=1e-5, rtol=1e-4)


def test_wav2vec2_frames_of_a_second():
    net = Wav2Vec2(SPEC, **W2V)
    assert net.receptive_field == 400
    assert net.token_lengths(torch.tensor([16000, 400, 399, 10])).tolist() == [49, 1, 0, 0]
    assert net.extract(torch.randn(1, 16000))[0].shape == (1, 49, net.conv_features)


def test_wav2vec2_starts_as_fairseq_does():
    net = Wav2Vec2(SPEC, conv_channels=64, width=128, depth=1, heads=4, position_kernel=32, position_groups=4)
    transformer = net.net.encoder.transformer
    assert transformer.layers[0].attention.q_proj.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert transformer.layers[0].feed_forward.output_dense.bias.abs().sum() == 0
    assert transformer.pos_conv_embed.conv.weight.std().item() == pytest.approx(math.sqrt(4 / (32 * 128)), rel=0.05)
    conv = net.net.feature_extractor.conv_layers[1].conv.weight
    assert conv.std().item() == pytest.approx(math.sqrt(2 / (3 * 64)), rel=0.05)


def test_wav2vec2_can_be_copied_for_a_teacher():
    net = Wav2Vec2(SPEC, **W2V).eval()
    twin, x = copy.deepcopy(net), torch.randn(1, 4000)
    torch.testing.assert_close(twin(x), net(x))
    assert not {p.data_ptr() for p in twin.parameters()} & {p.data_ptr() for p in net.parameters()}


@pytest.mark.parametrize(("make", "message"), [
    (lambda: LogMel(Spec("speech", (4000,))), r"spec.rate=0"),
    (lambda: LogMel(SPEC)(torch.zeros(1, 150)), r"150 samples is shorter than one window of 200"),
    (lambda: Wav2Vec2(SPEC, **W2V)(torch.zeros(1, 399)), r"399 samples is shorter than one frame of 400"),
    (lambda: SpeechConvNet(SPEC, norm="group"), r"norm must be"),
])
def test_mistakes_are_told(make, message):
    with pytest.raises(ValueError, match=message):
        make()
