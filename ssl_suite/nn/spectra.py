"""A series seen in other frames: its spectrum and its wavelet coefficients, and small nets that read them."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ssl_suite.functional.precision import full_precision
from ssl_suite.nn.transformer import mean_pool, valid_steps


@full_precision
def spectrum(x: Tensor) -> Tensor:
    """Orthonormal Fourier coefficients of real series (..., T), (..., T // 2 + 1) complex: nothing is lost."""
    return torch.fft.rfft(x.float(), norm="ortho")


@full_precision
def scalogram(x: Tensor, scales: Tensor) -> Tensor:
    """Magnitude of the coefficients of complex Morlet wavelets, exp(2 pi i t) exp(-t^2) / sqrt(pi), at each scale.

    The series is taken to be zero outside; the product with each wavelet's transform exp(-(s w - 2 pi)^2 / 4) is one in the
    frequencies of the series filled up to twice its length.

    Args:
        x: series (..., T).
        scales: in steps, (S,): that of a wave of s steps a period.

    Returns:
        (..., S, T).
    """
    size = x.shape[-1]
    frequency = 2.0 * math.pi * torch.fft.fftfreq(2 * size, device=x.device)
    bank = torch.exp(-(scales[:, None] * frequency - 2.0 * math.pi).square() / 4.0) * (frequency > 0)
    transformed = torch.fft.fft(x.float(), n=2 * size)[..., None, :] * bank * scales.sqrt()[:, None]
    return torch.fft.ifft(transformed)[..., :size].abs()


def log_scales(count: int, longest: float) -> Tensor:
    """Scales evenly spaced in their logarithm, from 2 steps, the shortest wave there is, to ``longest``."""
    return torch.logspace(math.log10(2.0), math.log10(max(2.0, longest)), count)


class SpectrumEncoder(nn.Module):
    """Convolutions over magnitude and over angle of a spectrum, in two branches of half the width.

    What they find is weighed by its frequency, with learned weights: a mean would not tell one frequency from another.

    Args:
        channels: channels C of a series.
        steps: steps T of a series.
        width: channels inside.
        outputs: width D of the representation, even.
    """

    def __init__(self, channels: int, steps: int, width: int, outputs: int) -> None:
        super().__init__()
        self.magnitude, self.angle = (_branch(channels, steps // 2 + 1, width, outputs // 2) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        """Map series (B, C, T) to (B, D)."""
        coefficients = spectrum(x)
        both = self.magnitude(coefficients.abs()), self.angle(coefficients.angle())
        return torch.cat(both, dim=1)


def _branch(channels: int, frequencies: int, width: int, outputs: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for before, after in ((channels, width), (width, width), (width, outputs)):
        layers += [nn.Conv1d(before, after, 5, 2, 2, bias=False), nn.BatchNorm1d(after), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(-(-frequencies // 8), 1), nn.Flatten())


class ScalogramEncoder(nn.Module):
    """Convolutions over scale and time of a scalogram, averaged over the steps that exist and weighed by scale.

    Args:
        channels: channels C of a series.
        steps: steps T of the longest series.
        scales: number of scales; they reach from 2 to T / 2 steps, 128 at most.
        width: channels inside.
        outputs: width D of the representation.
    """

    scales: Tensor

    def __init__(self, channels: int, steps: int, scales: int, width: int, outputs: int) -> None:
        super().__init__()
        self.register_buffer("scales", log_scales(scales, min(128.0, steps / 2)), persistent=False)
        layers: list[nn.Module] = []
        for before, after in ((channels, width), (width, outputs)):
            layers += [nn.Conv2d(before, after, 3, 2, 1, bias=False), nn.BatchNorm2d(after), nn.ReLU()]
        self.layers = nn.Sequential(*layers)
        self.weigh = nn.Linear(-(-scales // 4), 1)

    def forward(self, x: Tensor, length: Tensor | None = None) -> Tensor:
        """Map series (B, C, T) to (B, D)."""
        coefficients, valid = scalogram(x, self.scales), valid_steps(length, x.shape[2])
        if valid is not None:
            coefficients = coefficients * valid[:, None, None]
        maps = self.weigh(self.layers(coefficients).transpose(2, 3)).squeeze(3)
        return mean_pool(maps.transpose(1, 2), None if length is None else valid_steps((length + 3) // 4, maps.shape[2]))


class Mapper(nn.Module):
    """A convolution down to half the width, ReLU, and one back up: imitates one representation from another.

    Args:
        hidden: channels inside; 64 makes 449 parameters, 1 makes 8.
    """

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.down = nn.Conv1d(1, hidden, 3, 2, 1)
        self.up = nn.ConvTranspose1d(hidden, 1, 3, 2, 1, output_padding=1)

    def forward(self, h: Tensor) -> Tensor:
        """Map (B, D) to (B, D), D even."""
        return self.up(self.down(h.unsqueeze(1)).relu()).squeeze(1)
