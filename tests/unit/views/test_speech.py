"""Waveform operations against closed forms."""

from __future__ import annotations

import math

import pytest
import torch

from ssl_suite.views import speech
from ssl_suite.views.series import keep_valid

LENGTH = torch.tensor([800, 640, 440, 250, 100, 800])


def decibels(ratio: torch.Tensor) -> torch.Tensor:
    return 10 * torch.log10(ratio)


@pytest.mark.parametrize("colour", [0.0, 1.0, 2.0])
def test_noise_has_the_ratio_asked_for_on_the_valid_part(waves, make_draw, colour):
    x = keep_valid(waves, LENGTH)
    noisy = speech.Noise((7.0, 7.0), colour)(x, make_draw(6), LENGTH)
    snr = decibels(speech.power(x, LENGTH) / speech.power(noisy - x, LENGTH))
    assert torch.allclose(snr, torch.full_like(snr, 7.0), atol=0.01)


def test_noise_leaves_silence_silent(make_draw):
    assert speech.Noise()(torch.zeros(3, 50), make_draw(3), None).abs().max() == 0


@pytest.mark.parametrize("colour", [0.0, 1.0, 2.0])
def test_noise_has_its_colour(make_draw, colour):
    noise = speech.coloured_noise(make_draw(64), 4096, colour)
    spectrum = (torch.fft.rfft(noise * torch.hann_window(4096)).abs() ** 2).mean(0)
    low, high = spectrum[30:60].mean(), spectrum[480:960].mean()
    assert abs(float(decibels(low / high)) - colour * 10 * math.log10(16)) < 1.0


def test_gain_in_decibels(waves, make_draw):
    gain = decibels(speech.power(speech.Gain((-6, 6))(waves, make_draw(6), None), None) / speech.power(waves, None))
    assert gain.abs().max() <= 6.001
    assert gain.std() > 1


def test_speed_moves_the_pitch_and_the_end(make_draw):
    time = torch.arange(8000) / 8000
    x = torch.sin(2 * torch.pi * 200 * time)[None]
    for factor in (0.8, 1.25):
        y = speech.Speed(factor, factor)(x, make_draw(1), torch.tensor([8000]))
        peak = torch.fft.rfft(y).abs().argmax()
        assert abs(int(peak) - 200 * factor) <= 1
        end = int(y[0].nonzero().max()) + 1
        assert abs(end - min(8000, 8000 / factor)) <= 21
    x = torch.rand(4, 100)
    assert torch.allclose(speech.Speed(1.0, 1.0)(x, make_draw(4), None), x)


def test_shift_moves_and_silences(make_draw):
    x = torch.arange(1.0, 101.0).expand(200, 100)
    y = speech.TimeShift(0.2)(x, make_draw(200), None)
    inside = y != 0
    move = (torch.arange(100) + 1.0 - y)[inside]
    assert move.abs().max() <= 20
    assert move.min() < -10 < 10 < move.max()
    assert (inside.sum(1) >= 80).all()


def test_reverb_keeps_the_loudness_and_adds_a_tail(make_draw):
    x = torch.zeros(4, 4000)
    x[:, :200] = torch.randn(4, 200, generator=torch.Generator().manual_seed(0))
    y = speech.Reverb((0.3, 0.3), (0.0, 0.0), rate=8000)(x, make_draw(4), None)
    assert torch.allclose(speech.power(x, None), speech.power(y, None), rtol=1e-3)
    early, late = y[:, 300:700].square().mean(1), y[:, 1500:1900].square().mean(1)
    assert torch.allclose(decibels(early / late), torch.full((4,), 60 * 1200 / 2400), atol=4.0)  # 60 dB in 2400 samples


def test_masks_silence_time_and_frequency(make_draw):
    x = torch.randn(300, 1000, generator=torch.Generator().manual_seed(0))
    hidden = (speech.TimeMask(0.2, 1)(x, make_draw(300), None) == 0).float().mean(1)
    assert hidden.max() <= 0.2
    assert abs(float(hidden.mean()) - 0.1) < 0.015
    before, after = torch.fft.rfft(x).abs(), torch.fft.rfft(speech.FrequencyMask(0.2, 1)(x, make_draw(300), None)).abs()
    removed = after < 1e-3
    assert torch.allclose(after[~removed], before[~removed], atol=1e-2)
    assert abs(float(removed.float().mean()) - 0.1) < 0.015


def test_window_keeps_one_span(make_draw):
    kept = speech.Window((0.2, 0.5))(torch.ones(300, 1000), make_draw(300), torch.full((300,), 800)) == 1
    share = kept.float().sum(1) / 800
    assert share.min() >= 0.19
    assert share.max() <= 0.51
    assert not kept[:, 800:].any()
    assert ((kept[:, 1:] != kept[:, :-1]).sum(1) <= 2).all()


def test_polarity(make_draw):
    y = speech.Polarity(0.25)(torch.ones(2000, 2), make_draw(2000), None)
    assert abs(float((y[:, 0] < 0).float().mean()) - 0.25) < 0.03
