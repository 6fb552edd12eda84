"""Operations of speech views: float waveforms (B, T) of about [-1, 1] in and out, every parameter drawn per sample.

``length`` (B,) holds the valid samples of padded rows: operations act within them and what follows stays zero. Lengths
are never changed; see `Speed` for what that means. Times are parts of the valid length, or seconds at a given ``rate``.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ssl_suite.functional.random import Draw
from ssl_suite.views.series import interpolate, keep_valid, spans, steps, within


def power(x: Tensor, length: Tensor | None) -> Tensor:
    """Mean square over the valid samples, (B, 1)."""
    n = steps(x, length)
    return (x * within(n, x.shape[-1])).square().sum(dim=1, keepdim=True) / n.clamp_min(1)[:, None]


def convolve(x: Tensor, impulse: Tensor) -> Tensor:
    """Causal convolution of waveforms (B, T) with impulse responses (B or 1, K), cut to T samples."""
    size = 1 << (x.shape[1] + impulse.shape[1] - 1).bit_length()
    return torch.fft.irfft(torch.fft.rfft(x, size) * torch.fft.rfft(impulse, size), size)[:, : x.shape[1]]


def coloured_noise(draw: Draw, size: int, colour: float) -> Tensor:
    """Noise whose power falls as 1 / frequency ** colour, (B, size): white 0, pink 1, brown 2.

    White noise through the causal filter of Kasdin (1995), (1 - B) ** (-colour / 2), so that the samples do not depend
    on how far a row is padded.
    """
    white = draw.normal(size)
    if colour == 0.0:
        return white
    lag = torch.arange(1, size, device=white.device)
    impulse = torch.cat([lag.new_ones(1), (lag - 1 + colour / 2) / lag]).cumprod(dim=0)
    return convolve(white, impulse[None])


def add_noise(x: Tensor, noise: Tensor, snr_db: Tensor, length: Tensor | None) -> Tensor:
    """Add noise at a signal-to-noise ratio, (B, 1) in decibels, measured on the valid part; silence stays silent."""
    gain = (power(x, length) / power(noise, length).clamp_min(1e-12) * 10.0 ** (-snr_db / 10.0)).sqrt()
    return keep_valid(x + gain * noise, length)


def change_speed(x: Tensor, factor: Tensor, length: Tensor | None) -> Tensor:
    """Play faster or slower by factors (B, 1); see `Speed`."""
    n = steps(x, length)[:, None]
    step = torch.arange(x.shape[1], device=x.device)
    at = step * factor
    inside = (at <= n - 1) & (step < n)
    return interpolate(x, torch.minimum(at, (n - 1).clamp_min(0))) * inside


def reverberate(x: Tensor, noise: Tensor, rt60: Tensor, ratio_db: Tensor, rate: int, length: Tensor | None) -> Tensor:
    """Add a room made of noise that decays exponentially; the loudness stays.

    Args:
        x: waveforms, (B, T).
        noise: white noise, (B, K); K is the longest echo in samples.
        rt60: seconds in which the echo falls by 60 dB, (B, 1).
        ratio_db: energy of the direct sound over that of the echo, (B, 1) in decibels.
        rate: samples per second.
        length: valid samples, (B,) or None.

    Returns:
        Waveforms, (B, T).
    """
    time = torch.arange(1, noise.shape[1] + 1, device=x.device) / rate
    tail = noise * torch.exp(-3.0 * math.log(10.0) * time / rt60)
    tail = tail * (10.0 ** (-ratio_db / 10.0) / tail.square().sum(dim=1, keepdim=True).clamp_min(1e-12)).sqrt()
    wet = keep_valid(convolve(x, torch.cat([torch.ones_like(tail[:, :1]), tail], dim=1)), length)
    return wet * (power(x, length) / power(wet, length).clamp_min(1e-12)).sqrt()


class Gain:
    """Louder or softer.

    Args:
        db: range in decibels.
    """

    def __init__(self, db: tuple[float, float] = (-6.0, 6.0)) -> None:
        self.db = db

    def __call__(self, x: Tensor, draw: Draw, length: Tensor | None) -> Tensor:
        return x * 10.0 ** (draw.uniform(1, low=self.db[0], high=self.db[1]) / 20.0)


class Noise:
    """Add stationary noise at a random signal-to-noise ratio, measured over the valid part.

    Args:
        snr_db: range of the ratio in decibels.
        colour: the noise's power falls as 1 / frequency ** colour: white 0, pink 1, brown 2.
        p: probability per sample.
    """

    def __init__(self, snr_db: tuple[float, float] = (5.0, 20.0), colour: float = 0.0, p: float = 1.0) -> None:
        self.snr_db = snr_db
        self.colour = colour
        self.p = p

    def __call__(self, x: Tensor, draw: Draw, length: Tensor | None) -> Tensor:
        snr = draw.uniform(1, low=self.snr_db[0], high=self.snr_db[1])
        noisy = add_noise(x, coloured_noise(draw, x.shape[1], self.colour), snr, length)
        return torch.where(draw.chance(self.p, 1), noisy, x)


class TimeShift:
    """Move in time; what leaves the valid part is lost and silence enters.

    Args:
        fraction: largest move either way as a part of the valid length.
    """

    def __init__(self, fraction: float = 0.1) -> None:
        self.fraction = fraction

    def __call__(self, x: Tensor, draw: Draw, length: Tensor | None) -> Tensor:
        n = steps(x, length)[:, None]
        move = (draw.uniform(1, low=-self.fraction, high=self.fraction) * n).round().long()
        step = torch.arange(x.shape[1], device=x.device)
        source = step - move
        inside = (source >= 0) & (source < n) & (step < n)
        return x.gather(1, source.clamp(0, x.shape[1] - 1)) * inside


class Speed:
    """Play faster or slower, pitch included, by linear interpolation (Ko et al. 2015).

    The row's length stays: a faster waveform ends early and is followed by silence; a slower one loses its end, so keep
    ``low`` near one where transcripts are learned. No low-pass filter is applied before playing faster.

    Args:
        low: smallest factor.
        high: largest factor.
    """

    def __init__(self, low: float = 0.9, high: float = 1.1) -> None:
        self.low = low
        self.high = high

    def __call__(self, x: Tensor, draw: Draw, length: Tensor | None) -> Tensor:
        return change_speed(x, draw.uniform(1, low=self.low, high=self.high), length)


class Reverb:
    """A synthetic room: exponentially decaying noise as the impulse response, the loudness kept.

    Args:
        rt60: range in seconds of the time in which the echo falls by 60 dB.
        ratio_db: range of the energy of the direct sound over that of the echo, in decibels.
        rate: samples per second.
        p: probability per sample.
    """

    def __init__(self, rt60: tuple[float, float] = (0.1, 0.4), ratio_db: tuple[float, float] = (0.0, 15.0),
                 rate: int = 16000, p: float = 1.0) -> None:
        self.rt60 = rt60
        self.ratio_db = ratio_db
        self.rate = rate
        self.p = p

    def __call__(self, x: Tensor, draw: Draw, length: Tensor | None) -> Tensor:
        rt60 = draw.uniform(1, low=self.rt60[0], high=self.rt60[1])
        ratio = draw.uniform(1, low=self.ratio_db[0], high=self.ratio_db[1])
        noise = draw.normal(max(1, round(self.rt60[1] * self.rate)))
        return torch.where(draw.chance(self.p, 1), reverberate(x, noise, rt60, ratio, self.rate, length), x)


class TimeMask:
    """Silence spans of time (SpecAugment, Park et al. 2019, on the waveform).

    Args:
        fraction: longest span as a part of the valid length.
        n: number of spans.
    """

    def __init__(self, fraction: float = 0.1, n: int = 2) -> None:
        self.fraction = fraction
        self.n = n

    def __call__(self, x: Tensor, draw: Draw, length: Tensor | None) -> Tensor:
        return x.masked_fill(spans(steps(x, length), x.shape[1], draw, self.fraction, self.n), 0.0)


class Window:
    """Keep one random span of time and silence the rest: the local crop of multi-crop methods.

    The span stays where it is, so that all crops of a batch have one shape and pitch does not move.

    Args:
        scale: range of the span's part of the valid length.
    """

    def __init__(self, scale: tuple[float, float] = (0.3, 0.6)) -> None:
        self.scale = scale

    def __call__(self, x: Tensor, draw: Draw, length: Tensor | None) -> Tensor:
        n = steps(x, length)[:, None]
        width = draw.uniform(1, low=self.scale[0], high=self.scale[1]) * n
        start = draw.uniform(1) * (n - width)
        at = torch.arange(x.shape[1], device=x.device)
        return x.masked_fill((at < start) | (at >= start + width), 0.0)


class FrequencyMask:
    """Remove bands of frequency (SpecAugment, Park et al. 2019, on the waveform): zeros in its Fourier transform.

    Bands are drawn as parts of the range up to half the rate. With padded rows the edges of a band fall on the bins of
    the padded length, and so shift by less than one bin with the batch.

    Args:
        fraction: widest band as a part of the whole range.
        n: number of bands.
    """

    def __init__(self, fraction: float = 0.1, n: int = 2) -> None:
        self.fraction = fraction
        self.n = n

    def __call__(self, x: Tensor, draw: Draw, length: Tensor | None) -> Tensor:
        spectrum = torch.fft.rfft(x)
        width = draw.uniform(self.n, 1, high=self.fraction)
        low = draw.uniform(self.n, 1) * (1.0 - width)
        frequency = torch.linspace(0.0, 1.0, spectrum.shape[1], device=x.device)
        removed = ((frequency >= low) & (frequency < low + width)).any(dim=1)
        return keep_valid(torch.fft.irfft(spectrum.masked_fill(removed, 0.0), x.shape[1]), length)


class Polarity:
    """Turn the sign.

    Args:
        p: probability per sample.
    """

    def __init__(self, p: float = 0.5) -> None:
        self.p = p

    def __call__(self, x: Tensor, draw: Draw, length: Tensor | None) -> Tensor:
        return torch.where(draw.chance(self.p, 1), -x, x)
