"""Operations of series views: float series (B, C, T) in, the same out, every parameter drawn per sample.

``length`` (B,) holds the valid steps of padded rows: operations act within them and what follows stays zero. Series
arrive in their own units, so amplitudes are relative: noise is measured in standard deviations of the sample's own
channel, and what is hidden takes the channel's mean over the valid steps. All channels of a sample move together.

The helpers on top work on any (B, ..., T) and serve waveforms too.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from ssl_suite.functional.random import Draw


def steps(x: Tensor, length: Tensor | None) -> Tensor:
    """Valid time steps of each row, (B,) int64."""
    if length is None:
        return torch.full((len(x),), x.shape[-1], device=x.device)
    return length


def within(n: Tensor, size: int) -> Tensor:
    """True at the first ``n`` (B,) of ``size`` steps, (B, size)."""
    return torch.arange(size, device=n.device) < n[:, None]


def spread(values: Tensor, x: Tensor) -> Tensor:
    """Values of each row and step, (B, T), or of each row, (B, 1), shaped to act on ``x``, (B, ..., T)."""
    return values.view(len(values), *(1,) * (x.ndim - 2), -1)


def keep_valid(x: Tensor, length: Tensor | None) -> Tensor:
    """Zero what lies behind the valid steps."""
    return x if length is None else x * spread(within(length, x.shape[-1]), x)


def moments(x: Tensor, length: Tensor | None) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation over the valid steps, each (B, ..., 1)."""
    n = steps(x, length).clamp_min(1)
    valid = spread(within(n, x.shape[-1]), x)
    count = spread(n[:, None], x)
    mean = (x * valid).sum(dim=-1, keepdim=True) / count
    return mean, (((x - mean) * valid).square().sum(dim=-1, keepdim=True) / count).sqrt()


def take(x: Tensor, index: Tensor) -> Tensor:
    """Steps of each row by their numbers, index (B, T') int64; all channels alike."""
    return x.gather(-1, spread(index, x).expand(*x.shape[:-1], index.shape[1]))


def interpolate(x: Tensor, at: Tensor) -> Tensor:
    """Values at fractional steps by linear interpolation, at (B, T') within [0, T - 1]."""
    low = at.floor()
    first = low.long().clamp(0, x.shape[-1] - 1)
    second = (first + 1).clamp_max(x.shape[-1] - 1)
    return torch.lerp(take(x, first), take(x, second), spread(at - low, x))


def spans(n: Tensor, size: int, draw: Draw, fraction: float, count: int) -> Tensor:
    """True inside random spans, (B, size).

    Args:
        n: valid steps of each row, (B,); spans lie within them.
        size: steps in all.
        draw: random numbers.
        fraction: longest span as a part of the valid steps; lengths are uniform from 0.
        count: number of spans, which may overlap.
    """
    width = (draw.uniform(count, high=fraction) * (n[:, None] + 1)).floor()
    first = (draw.uniform(count) * (n[:, None] - width + 1)).floor()
    step = torch.arange(size, device=n.device)
    return ((step >= first[:, :, None]) & (step < (first + width)[:, :, None])).any(dim=1)


@lru_cache(maxsize=16)
def _second_derivatives(knots: int, device: torch.device) -> Tensor:
    """Matrix (K, K) from the values at evenly spaced knots to the second derivatives of the natural cubic spline."""
    inner = torch.arange(1, knots - 1)
    left, right = torch.eye(knots, dtype=torch.float64), torch.zeros(knots, knots, dtype=torch.float64)
    for offset, weight, difference in ((-1, 1.0, 6.0), (0, 4.0, -12.0), (1, 1.0, 6.0)):
        left[inner, inner + offset] = weight
        right[inner, inner + offset] = difference
    return torch.linalg.solve(left, right).float().to(device)


def smooth_curve(values: Tensor, at: Tensor) -> Tensor:
    """Natural cubic spline through evenly spaced knots.

    Args:
        values: at the knots, (B, ..., K) with K of at least 2.
        at: places to read, (B, T), 0 being the first knot and 1 the last.

    Returns:
        The curve, (B, ..., T).
    """
    knots = values.shape[-1]
    # Not a matrix product: autocast would round it to bfloat16.
    bend = (values[..., None, :] * _second_derivatives(knots, values.device)).sum(dim=-1)
    place = at.clamp(0.0, 1.0) * (knots - 1)
    left = place.floor().clamp_max(knots - 2).long()
    b = spread(place - left, values)
    a = 1.0 - b
    curve = a * take(values, left) + b * take(values, left + 1)
    return curve + ((a**3 - a) * take(bend, left) + (b**3 - b) * take(bend, left + 1)) / 6.0


def progress(x: Tensor, n: Tensor) -> Tensor:
    """Place of each step between the first and the last valid one, (B, T), 0 to 1."""
    last = (n - 1).clamp_min(1)[:, None]
    return (torch.arange(x.shape[-1], device=x.device) / last).clamp(0.0, 1.0)


class Jitter:
    """Add white noise.

    Args:
        std: standard deviation of the noise, in standard deviations of the sample's channel.
    """

    def __init__(self, std: float = 0.1) -> None:
        self.std = std

    def __call__(self, x: Tensor, draw: Draw, length: Tensor | None) -> Tensor:
        noise = draw.normal(x.shape[-1], x.shape[1]).transpose(1, 2)  # time first: padding does not change the numbers
        return keep_valid(x + self.std * moments(x, length)[1] * noise, length)


class Scaling:
    """Multiply every channel by a normal random factor.

    Args:
        std: standard deviation of the factor.
        mean: its mean; Um et al. (2017) take 1, TS-TCC's weak view takes mean 2, std 1.1.
    """

    def __init__(self, std: float = 0.1, mean: float = 1.0) -> None:
        self.std = std
        self.mean = mean

    def __call__(self, x: Tensor, draw: Draw, length: Tensor | None) -> Tensor:
        return x * (self.mean + self.std * draw.normal(x.shape[1], 1))


class MagnitudeWarp:
    """Multiply every channel by a smooth random curve around one (Um et al. 2017).

    The curve is a natural cubic spline; the original code's ends differ slightly (not-a-knot).

    Args:
        knots: knots between the two ends.
        std: standard deviation of the curve at the knots.
    """

    def __init__(self, knots: int = 4, std: float = 0.2) -> None:
        self.knots = knots
        self.std = std

    def __call__(self, x: Tensor, draw: Draw, length: Tensor | None) -> Tensor:
        values = 1.0 + self.std * draw.normal(x.shape[1], self.knots + 2)
        return keep_valid(x * smooth_curve(values, progress(x, steps(x, length))), length)


class TimeWarp:
    """Run through the series at a smoothly varying random speed, from its first step to its last (Um et al. 2017).

    Args:
        knots: knots of the speed between the two ends.
        std: standard deviation of the speed at the knots, its mean being one.
    """

    def __init__(self, knots: int = 4, std: float = 0.2) -> None:
        self.knots = knots
        self.std = std

    def __call__(self, x: Tensor, draw: Draw, length: Tensor | None) -> Tensor:
        n = steps(x, length)
        values = 1.0 + self.std * draw.normal(self.knots + 2)
        speed = smooth_curve(values, progress(x, n)).clamp_min(0.05)
        passed = (speed * within(n, x.shape[-1])).cumsum(dim=1)
        passed, total = passed - passed[:, :1], passed[:, -1:] - passed[:, :1]
        at = passed / total.clamp_min(1e-6) * (n - 1)[:, None]
        return keep_valid(interpolate(x, at), length)


class Permutation:
    """Cut into nearly equal segments and put them in random order (Um et al. 2017; TS-TCC's strong view).

    All channels move together. (TS-TCC's published code copies the first channel into the others.)

    Args:
        max_segments: the number of segments is uniform in 1..max_segments.
    """

    def __init__(self, max_segments: int = 8) -> None:
        self.max_segments = max_segments

    def __call__(self, x: Tensor, draw: Draw, length: Tensor | None) -> Tensor:
        n = steps(x, length)[:, None]
        segments = 1 + draw.integers(self.max_segments)[:, None]
        step = torch.arange(x.shape[-1], device=x.device)
        segment = (step * segments // n.clamp_min(1)).clamp_max(self.max_segments - 1)
        place = draw.permutation(self.max_segments).gather(1, segment)
        order = place.masked_fill(step >= n, self.max_segments).argsort(dim=1, stable=True)
        return take(x, order)


class TimeMask:
    """Hide spans of time in all channels.

    Args:
        fraction: longest span as a part of the valid steps.
        n: number of spans.
    """

    def __init__(self, fraction: float = 0.1, n: int = 2) -> None:
        self.fraction = fraction
        self.n = n

    def __call__(self, x: Tensor, draw: Draw, length: Tensor | None) -> Tensor:
        hidden = spans(steps(x, length), x.shape[-1], draw, self.fraction, self.n)
        return keep_valid(torch.where(spread(hidden, x), moments(x, length)[0], x), length)


class Crop:
    """Random window stretched to the length of the series by linear interpolation ("window slicing").

    Args:
        scale: range of the window's part of the valid steps.
    """

    def __init__(self, scale: tuple[float, float] = (0.6, 1.0)) -> None:
        self.scale = scale

    def __call__(self, x: Tensor, draw: Draw, length: Tensor | None) -> Tensor:
        n = steps(x, length)
        last = (n - 1).clamp_min(0)[:, None]
        width = draw.uniform(1, low=self.scale[0], high=self.scale[1]) * last
        start = draw.uniform(1) * (last - width)
        return keep_valid(interpolate(x, start + progress(x, n) * width), length)


class TimeShift:
    """Turn the series in a circle: what leaves at one end of the valid part enters at the other.

    Args:
        fraction: largest move either way as a part of the valid steps.
    """

    def __init__(self, fraction: float = 0.1) -> None:
        self.fraction = fraction

    def __call__(self, x: Tensor, draw: Draw, length: Tensor | None) -> Tensor:
        n = steps(x, length)[:, None]
        move = (draw.uniform(1, low=-self.fraction, high=self.fraction) * n).round().long()
        step = torch.arange(x.shape[-1], device=x.device)
        return take(x, torch.where(step < n, (step - move) % n.clamp_min(1), step))


class ChannelDrop:
    """Hide whole channels; one at least stays.

    Args:
        p: probability per channel.
    """

    def __init__(self, p: float = 0.1) -> None:
        self.p = p

    def __call__(self, x: Tensor, draw: Draw, length: Tensor | None) -> Tensor:
        chance = draw.uniform(x.shape[1])
        hidden = (chance < self.p) & (chance < chance.amax(dim=1, keepdim=True))
        return keep_valid(torch.where(hidden[:, :, None], moments(x, length)[0], x), length)
