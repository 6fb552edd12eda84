"""Frame projections: the frames against their definitions, the loss against its parts written out."""

from __future__ import annotations

import math

import lightning as L
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_suite.backbones.series import SeriesConvNet
from ssl_suite.batch import Spec
from ssl_suite.methods.pretraining.frame_projections import FrameProjections
from ssl_suite.nn.spectra import Mapper, ScalogramEncoder, SpectrumEncoder, log_scales, scalogram, spectrum
from ssl_suite.testing import tiny_batch
from ssl_suite.views import Views
from tests.configs import built

SPEC = Spec("series", (2, 40), mean=(0.0, 0.0), std=(1.0, 1.0))


def method(**settings: float) -> FrameProjections:
    torch.manual_seed(0)
    backbone = SeriesConvNet(SPEC, width=8, depth=2, num_features=16)
    return FrameProjections(backbone, Views().standardise(SPEC), scales=8, width=8, hidden_dim=16, projection_dim=8, **settings)


def nt_xent(a: Tensor, b: Tensor, temperature: float) -> Tensor:
    z, n, total = F.normalize(torch.cat([a, b]), dim=1), len(a), 0.0
    for i in range(2 * n):
        others = torch.stack([z[i] @ z[m] / temperature for m in range(2 * n) if m != i])
        total = total + torch.logsumexp(others, 0) - z[i] @ z[(i + n) % (2 * n)] / temperature
    return total / (2 * n)


def test_the_spectrum_loses_nothing() -> None:
    x = torch.randn(5, 2, 41)
    torch.testing.assert_close(torch.fft.irfft(spectrum(x), n=41, norm="ortho"), x, rtol=1e-5, atol=1e-5)
    energy = spectrum(x).abs().square()
    torch.testing.assert_close(2 * energy.sum(-1) - energy[..., 0], x.square().sum(-1), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("scale", [6.0, 7.5, 16.0])
def test_coefficients_are_the_correlation_with_the_wavelet_in_time(scale: float) -> None:
    x = np.random.default_rng(0).normal(size=64)
    t = np.arange(64)
    expected = np.empty(64, dtype=complex)
    for b in range(64):
        u = (t - b) / scale
        wavelet = np.exp(2j * math.pi * u) * np.exp(-u ** 2) / math.sqrt(math.pi)
        expected[b] = (x * wavelet.conj()).sum() / math.sqrt(scale)
    ours = scalogram(torch.from_numpy(x), torch.tensor([scale]))[0]
    inner = slice(8, -8)  # a wavelet of 16 steps wraps around by a trace at the ends
    torch.testing.assert_close(ours[inner].double(), torch.from_numpy(np.abs(expected))[inner], rtol=2e-2, atol=1e-2)


def test_a_wave_shows_at_the_scale_of_its_period() -> None:
    scales = log_scales(24, 64)
    x = torch.sin(2 * math.pi * torch.arange(256) / 10.0)
    strongest = scales[(scalogram(x, scales) / scales.sqrt()[:, None])[:, 128].argmax()]
    assert strongest.item() == pytest.approx(10.0, rel=0.1)


def test_a_step_is_the_sum_of_its_parts() -> None:
    m = method(temperature=0.3, map_weight=0.7)
    batch = tiny_batch(SPEC, 5, labels=False)
    (x,) = m.views(batch, "clean")
    frames = [m.backbone(x), m.fourier(x), m.wavelet(x)]
    z = [F.normalize(p(h), dim=1) for p, h in zip(m.projectors, frames, strict=True)]
    identity = nt_xent(z[0], z[1], 0.3) + nt_xent(z[0], z[2], 0.3) + nt_xent(z[1], z[2], 0.3)
    mapping = sum((m.embedding_mappers[i](z[0]) - z[i + 1]).abs().mean() for i in range(2))
    imitation = sum((m.mappers[i](frames[0]) - frames[i + 1]).abs().mean() for i in range(2))
    out = m.step(batch)
    assert out.loss.item() == pytest.approx((identity + 0.7 * mapping + imitation).item(), rel=1e-5)
    ours = torch.autograd.grad(out.loss, m.backbone.entry.weight)[0]
    theirs = torch.autograd.grad(identity + 0.7 * mapping, m.backbone.entry.weight)[0]
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)  # imitation leaves the encoders alone


def test_encoders_of_frames_tell_where_a_peak_stands() -> None:
    """A mean over frequencies or scales would not: the strides divide these shifts."""
    torch.manual_seed(0)
    waves = torch.cos(2 * math.pi * torch.tensor([[16], [24]]) * torch.arange(160) / 160)[:, None]
    peaks = SpectrumEncoder(1, 160, 8, 4).eval().magnitude(spectrum(waves).abs())
    assert (peaks[0] - peaks[1]).abs().max() > 1e-3
    torch.testing.assert_close(*spectrum(waves).abs().sort(dim=-1).values, rtol=0, atol=1e-4)
    encoder = ScalogramEncoder(1, 160, 24, 8, 4).eval()
    coefficients = torch.zeros(2, 1, 24, 160)
    coefficients[0, :, 8], coefficients[1, :, 12] = 1.0, 1.0
    maps = encoder.layers(coefficients)
    torch.testing.assert_close(*maps.mean(2))
    weighed = encoder.weigh(maps.transpose(2, 3))
    assert (weighed[0] - weighed[1]).abs().max() > 1e-3


def test_mappers_are_tiny() -> None:
    assert [sum(p.numel() for p in Mapper(hidden).parameters()) for hidden in (64, 1)] == [449, 8]


@pytest.mark.slow
def test_mappers_imitate_other_frames_better_than_their_mean() -> None:
    m, data = built("model=frame_projections", "data=series", "data.name=GunPoint", "data.batch_size=16", "data.steps_per_epoch=10",
                    "backbones.features.width=16", "backbones.features.depth=4", "backbones.features.num_features=64",
                    "backbones.features.pool=mean")
    trainer = L.Trainer(max_epochs=20, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
                        enable_model_summary=False, limit_val_batches=0)
    trainer.fit(m, datamodule=data)
    (x,) = m.eval().views(next(iter(data.test_dataloader())), "clean")
    with torch.no_grad():
        h, frames = m.backbone(x), [m.fourier(x), m.wavelet(x)]
        for mapper, frame in zip(m.mappers, frames, strict=True):
            assert F.l1_loss(mapper(h), frame) < (frame - frame.mean()).abs().mean()


def test_one_encoder_runs_when_trained() -> None:
    m = method(mapped=True).eval()
    called = []
    for name in ("backbone", "fourier", "wavelet"):
        getattr(m, name).register_forward_hook(lambda *_, name=name: called.append(name))
    h = m(tiny_batch(SPEC, 4))
    assert h.shape == (4, 48)
    assert called == ["backbone"]
    m.mapped = False
    torch.testing.assert_close(m(tiny_batch(SPEC, 4)), h[:, 16:32])


def test_padding_plays_no_part() -> None:
    m = method().eval()
    batch = {**tiny_batch(SPEC, 4, labels=False), "length": torch.tensor([40, 12, 20, 40])}
    loss = m.step(batch).loss
    batch["x"] = torch.where(torch.arange(40) < batch["length"][:, None, None], batch["x"], 99.0)
    torch.testing.assert_close(m.step(batch).loss, loss)
    shorter = {**batch, "x": batch["x"][1:3, :, :20], "length": batch["length"][1:3]}
    longer = {**shorter, "x": batch["x"][1:3]}
    shorter["index"] = longer["index"] = batch["index"][1:3]
    shorter["epoch"] = longer["epoch"] = batch["epoch"][1:3]
    torch.testing.assert_close(m.step(shorter).loss, m.step(longer).loss)


def test_an_odd_width_is_refused() -> None:
    with pytest.raises(ValueError, match="num_features=15"):
        FrameProjections(SeriesConvNet(SPEC, width=8, depth=1, num_features=15), Views())
