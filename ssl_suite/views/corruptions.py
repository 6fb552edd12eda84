"""Named corruptions of five severities, as operations of a view: what a model meets after it is deployed.

Pictures: the 15 corruptions and 4 spares of Hendrycks and Dietterich (ICLR 2019). All their constants were compared
with ``make_cifar_c.py`` and ``make_imagenet_c.py`` of the authors' repository. The algorithms are written anew,
batched, with one draw per sample, and deviate as each function says: `glass_blur` moves all pixels at once,
`motion_blur` and `snow` use ImageMagick's one-sided filter as recalled, `frost` is procedural (the authors paste
photographs), `spatter` shades its water without edge detection, noise is not rounded to 8 bits. In mean absolute
difference glass_blur, elastic_transform, saturate, spatter, frost and snow do not grow at every step: so are the
benchmark's constants. Speech and series have no such standard: those corruptions are ours.

The family ``digits`` is ours too, for grey digits of 8 to 28 pixels, where CIFAR's constants are too mild: severity 5
is Gaussian noise .5, impulse noise .3, blur 2 pixels, contrast .12, brightness +.5, 5 pixels left of 16, and stronger
shot and speckle noise and JPEG; the other constants are CIFAR's.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_suite.batch import Modality
from ssl_suite.functional.random import Draw
from ssl_suite.views.images import blur, filter_matrix, fold, full_precision, gaussian_kernel, grey, separable
from ssl_suite.views.series import interpolate, keep_valid, moments, progress, smooth_curve, spread, steps
from ssl_suite.views.speech import add_noise, change_speed, coloured_noise, power, reverberate

Family = Literal["cifar", "imagenet", "digits"]

# ---------------------------------------------------------------------------------------------------------- constants
# One row per corruption, one entry per severity 1 to 5. Lengths in pixels; elastic_transform: in parts of the side.

CIFAR: dict[str, tuple] = {
    "gaussian_noise": (0.04, 0.06, 0.08, 0.09, 0.10),
    "shot_noise": (500, 250, 100, 75, 50),
    "impulse_noise": (0.01, 0.02, 0.03, 0.05, 0.07),
    "defocus_blur": ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1)),
    "glass_blur": ((0.05, 1, 1), (0.25, 1, 1), (0.4, 1, 1), (0.25, 1, 2), (0.4, 1, 2)),
    "motion_blur": ((6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5)),
    "zoom_blur": ((0.06, 0.01), (0.11, 0.01), (0.16, 0.01), (0.21, 0.01), (0.26, 0.01)),
    "snow": ((0.1, 0.2, 1, 0.6, 8, 3, 0.95), (0.1, 0.2, 1, 0.5, 10, 4, 0.9), (0.15, 0.3, 1.75, 0.55, 10, 4, 0.9),
             (0.25, 0.3, 2.25, 0.6, 12, 6, 0.85), (0.3, 0.3, 1.25, 0.65, 14, 12, 0.8)),
    "frost": ((1, 0.2), (1, 0.3), (0.9, 0.4), (0.85, 0.4), (0.75, 0.45)),
    "fog": ((0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75)),
    "brightness": (0.05, 0.1, 0.15, 0.2, 0.3),
    "contrast": (0.75, 0.5, 0.4, 0.3, 0.15),
    "elastic_transform": ((0, 0, 0.08), (0.05, 0.2, 0.07), (0.08, 0.06, 0.06), (0.1, 0.04, 0.05), (0.1, 0.03, 0.03)),
    "pixelate": (0.95, 0.9, 0.85, 0.75, 0.65),
    "jpeg_compression": (80, 65, 58, 50, 40),
    "speckle_noise": (0.06, 0.1, 0.12, 0.16, 0.2),
    "gaussian_blur": (0.4, 0.6, 0.7, 0.8, 1),
    "spatter": ((0.62, 0.1, 0.7, 0.7, 0.5, 0), (0.65, 0.1, 0.8, 0.7, 0.5, 0), (0.65, 0.3, 1, 0.69, 0.5, 0),
                (0.65, 0.1, 0.7, 0.69, 0.6, 1), (0.65, 0.1, 0.5, 0.68, 0.6, 1)),
    "saturate": ((0.3, 0), (0.1, 0), (1.5, 0), (2, 0.1), (2.5, 0.2)),
}

IMAGENET: dict[str, tuple] = {
    "gaussian_noise": (0.08, 0.12, 0.18, 0.26, 0.38),
    "shot_noise": (60, 25, 12, 5, 3),
    "impulse_noise": (0.03, 0.06, 0.09, 0.17, 0.27),
    "defocus_blur": ((3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5)),
    "glass_blur": ((0.7, 1, 2), (0.9, 2, 1), (1, 2, 3), (1.1, 3, 2), (1.5, 4, 2)),
    "motion_blur": ((10, 3), (15, 5), (15, 8), (15, 12), (20, 15)),
    "zoom_blur": ((0.11, 0.01), (0.16, 0.01), (0.21, 0.02), (0.26, 0.02), (0.31, 0.03)),
    "snow": ((0.1, 0.3, 3, 0.5, 10, 4, 0.8), (0.2, 0.3, 2, 0.5, 12, 4, 0.7), (0.55, 0.3, 4, 0.9, 12, 8, 0.7),
             (0.55, 0.3, 4.5, 0.85, 12, 8, 0.65), (0.55, 0.3, 2.5, 0.85, 12, 12, 0.55)),
    "frost": ((1, 0.4), (0.8, 0.6), (0.7, 0.7), (0.65, 0.7), (0.6, 0.75)),
    "fog": ((1.5, 2), (2, 2), (2.5, 1.7), (2.5, 1.5), (3, 1.4)),
    "brightness": (0.1, 0.2, 0.3, 0.4, 0.5),
    "contrast": (0.4, 0.3, 0.2, 0.1, 0.05),
    "elastic_transform": tuple((a * 244 / 224, b * 244 / 224, c * 244 / 224) for a, b, c in (
        (2, 0.7, 0.1), (2, 0.08, 0.2), (0.05, 0.01, 0.02), (0.07, 0.01, 0.02), (0.12, 0.01, 0.02))),
    "pixelate": (0.6, 0.5, 0.4, 0.3, 0.25),
    "jpeg_compression": (25, 18, 15, 10, 7),
    "speckle_noise": (0.15, 0.2, 0.35, 0.45, 0.6),
    "gaussian_blur": (1, 2, 3, 4, 6),
    "spatter": ((0.65, 0.3, 4, 0.69, 0.6, 0), (0.65, 0.3, 3, 0.68, 0.6, 0), (0.65, 0.3, 2, 0.68, 0.5, 0),
                (0.65, 0.3, 1, 0.65, 1.5, 1), (0.67, 0.4, 1, 0.65, 1.5, 1)),
    "saturate": ((0.3, 0), (0.1, 0), (2, 0), (5, 0.1), (20, 0.2)),
}

DIGITS: dict[str, tuple] = CIFAR | {
    "gaussian_noise": (0.1, 0.2, 0.3, 0.4, 0.5),
    "shot_noise": (30, 12, 6, 4, 2),
    "impulse_noise": (0.06, 0.12, 0.18, 0.24, 0.3),
    "brightness": (0.1, 0.2, 0.3, 0.4, 0.5),
    "contrast": (0.6, 0.4, 0.3, 0.2, 0.12),
    "pixelate": (0.75, 0.62, 0.5, 0.4, 0.3125),
    "jpeg_compression": (40, 25, 18, 12, 7),
    "speckle_noise": (0.2, 0.4, 0.6, 0.8, 1.0),
    "gaussian_blur": (0.4, 0.8, 1.2, 1.6, 2.0),
}

SPEECH: dict[str, tuple] = {
    "noise": (20, 15, 10, 5, 0),  # signal-to-noise ratio in dB, pink noise
    "reverb": ((0.2, 12), (0.3, 8), (0.5, 4), (0.7, 0), (1.0, -4)),  # seconds to -60 dB, direct over echo in dB
    "telephone": (8, 7, 6, 5, 4),  # bits per sample after mu-law
    "clipping": (0.7, 0.5, 0.3, 0.15, 0.07),  # level of clipping as a part of the peak
    "gain": (6, 12, 18, 24, 30),  # dB softer
    "speed": (1.05, 1.1, 1.2, 1.3, 1.5),  # factor, or its inverse, by a coin
}

SERIES: dict[str, tuple] = {
    "gaussian_noise": (0.1, 0.2, 0.4, 0.7, 1.0),  # in standard deviations of the sample's channel
    "gain": (1.1, 1.25, 1.5, 2.0, 3.0),  # factor, or its inverse, by a coin per channel
    "drift": (0.25, 0.5, 1.0, 1.5, 2.0),  # standard deviation at the knots of a smooth wander
    "dropout": (0.05, 0.1, 0.2, 0.35, 0.5),  # part of the time in which a channel reads its mean
    "resample": (0.8, 0.6, 0.4, 0.25, 0.15),  # kept part of the sampling rate
    "offset": (0.25, 0.5, 1.0, 1.5, 2.0),  # in standard deviations, either way
}


# ------------------------------------------------------------------------------------------------------------ helpers

def poisson(rate: Tensor, draw: Draw) -> Tensor:
    """Poisson numbers, one for each entry of ``rate`` (B, ...), from one normal number each.

    Exact inversion below a rate of 12; above it the quantile's Cornish-Fisher expansion to second order, rounded, whose
    distribution function is off by less than 0.005.
    """
    z = draw.normal(*rate.shape[1:])
    u = torch.special.ndtr(z)
    small = rate.clamp_max(12.0)
    term = (-small).exp()
    below, count = term, torch.zeros_like(rate)
    for k in range(1, 40):
        count = count + (u > below)
        term = term * small / k
        below = below + term
    root = rate.clamp_min(1.0).sqrt()
    large = (rate + root * z + (z * z - 1.0) / 6.0 + (z - z**3) / (72.0 * root)).round().clamp_min(0.0)
    return torch.where(rate < 12.0, count, large)


def plasma(draw: Draw, h: int, w: int, decay: float) -> Tensor:
    """Heights in [0, 1] by the diamond-square algorithm, roughness falling by ``decay`` per octave, (B, h, w)."""
    size = 1 << (max(h, w) - 1).bit_length()
    heights = torch.zeros(len(draw), size, size, device=draw.keys.device)
    step, wobble = size, 100.0

    def settle(total: Tensor, wobble: float) -> Tensor:
        return total / 4.0 + wobble * draw.uniform(*total.shape[1:], low=-wobble, high=wobble)

    while step >= 2:
        half = step // 2
        corners = heights[:, ::step, ::step]
        total = corners + corners.roll(-1, 1)
        heights[:, half::step, half::step] = settle(total + total.roll(-1, 2), wobble)
        centres = heights[:, half::step, half::step]
        heights[:, ::step, half::step] = settle(centres + centres.roll(1, 1) + corners + corners.roll(-1, 2), wobble)
        heights[:, half::step, ::step] = settle(centres + centres.roll(1, 2) + corners + corners.roll(-1, 1), wobble)
        step, wobble = half, wobble / decay
    low, high = heights.amin(dim=(1, 2), keepdim=True), heights.amax(dim=(1, 2), keepdim=True)
    return ((heights - low) / (high - low).clamp_min(1e-12))[:, :h, :w]


def zoomed(x: Tensor, factor: float) -> Tensor:
    """The middle of pictures, enlarged bilinearly to their size."""
    h, w = x.shape[2:]
    ch, cw = math.ceil(h / factor), math.ceil(w / factor)
    top, left = (h - ch) // 2, (w - cw) // 2
    size = (max(h, round(ch * factor)), max(w, round(cw * factor)))
    x = F.interpolate(x[:, :, top : top + ch, left : left + cw], size, mode="bilinear", align_corners=True)
    top, left = (size[0] - h) // 2, (size[1] - w) // 2
    return x[:, :, top : top + h, left : left + w]


def smear(x: Tensor, angle: Tensor, radius: int, sigma: float) -> Tensor:
    """One-sided Gaussian trail of 2 radius + 1 whole-pixel steps along an angle (B,), edges continued."""
    h, w = x.shape[2:]
    weights = torch.softmax(-0.5 * (torch.arange(2 * radius + 1, device=x.device) / sigma) ** 2, dim=0)
    rows, columns = torch.arange(h, device=x.device), torch.arange(w, device=x.device)
    sample = torch.arange(len(x), device=x.device)[:, None, None, None]
    channel = torch.arange(x.shape[1], device=x.device)[:, None, None]
    out = torch.zeros_like(x)
    for i in range(2 * radius + 1):
        dy, dx = (i * angle.sin() - 0.5).ceil().long(), (i * angle.cos() - 0.5).ceil().long()
        y, z = (rows + dy[:, None]).clamp(0, h - 1), (columns + dx[:, None]).clamp(0, w - 1)
        out = out + weights[i] * x[sample, channel, y[:, None, :, None], z[:, None, None, :]]
    return out


def gaussian(x: Tensor, sigma: float) -> Tensor:
    """Gaussian blur of one width as scikit-image does it: four widths far, edges continued."""
    return blur(x, torch.full((len(x),), float(sigma), device=x.device), int(4.0 * sigma + 0.5), "edge")


def area_matrix(size: int, out: int, device: torch.device) -> Tensor:
    """Pillow's box filter from ``size`` to ``out`` pixels, (1, out, size)."""
    scale = size / out
    centre = (torch.arange(out, device=device) + 0.5)[:, None] * scale
    away = (torch.arange(size, device=device) + 0.5 - centre) / max(scale, 1.0)
    weight = ((away > -0.5) & (away <= 0.5)).float()
    return (weight / weight.sum(dim=1, keepdim=True))[None]


# ----------------------------------------------------------------------------------------------------------- pictures
# (x in [0, 1], constants of the severity, draw) -> pictures; the caller clips to [0, 1].

def gaussian_noise(x: Tensor, c: float, draw: Draw) -> Tensor:
    """White noise of standard deviation ``c``."""
    return x + c * draw.normal(*x.shape[1:])


def shot_noise(x: Tensor, c: float, draw: Draw) -> Tensor:
    """Photon noise: ``c`` photons at full brightness."""
    return poisson(x * c, draw) / c


def impulse_noise(x: Tensor, c: float, draw: Draw) -> Tensor:
    """Salt and pepper on a part ``c`` of the values."""
    u = draw.uniform(*x.shape[1:])
    return torch.where(u < c, (u < c / 2).float(), x)


def speckle_noise(x: Tensor, c: float, draw: Draw) -> Tensor:
    """Noise in proportion to the value."""
    return x + c * x * draw.normal(*x.shape[1:])


def gaussian_blur(x: Tensor, c: float, draw: Draw) -> Tensor:
    """Gaussian blur of width ``c``."""
    return gaussian(x, c)


def glass_blur(x: Tensor, c: tuple[float, int, int], draw: Draw) -> Tensor:
    """Blur, local disorder, blur.

    The original walks over the pixels and exchanges each with a neighbour; as it assigns views of one array, it in fact
    copies the neighbour. Here every pixel copies a neighbour at once, per round.
    """
    sigma, reach, rounds = c
    x = gaussian(x, sigma)
    b, channels, h, w = x.shape
    rows, columns = torch.arange(h, device=x.device)[:, None], torch.arange(w, device=x.device)
    inner = (rows > reach) & (rows <= h - reach) & (columns > reach) & (columns <= w - reach)
    for _ in range(rounds):
        dy, dx = (draw.integers(2 * reach, 2, h, w) - reach).unbind(dim=1)
        source = (rows + dy * inner).clamp(0, h - 1) * w + (columns + dx * inner).clamp(0, w - 1)
        x = x.flatten(2).gather(2, source.view(b, 1, -1).expand(b, channels, -1)).view_as(x)
    return gaussian(x, sigma)


@full_precision
def defocus_blur(x: Tensor, c: tuple[float, float], draw: Draw) -> Tensor:
    """Blur by a disk of radius ``c[0]``, itself smoothed by ``c[1]``."""
    radius, alias = c
    reach = math.ceil(radius) + (1 if radius <= 8 else 2)
    taps = torch.arange(-reach, reach + 1, device=x.device)
    disk = (taps**2 + taps[:, None] ** 2 <= radius**2).float()
    smooth = gaussian_kernel(torch.full((1,), alias, device=x.device), 1 if radius <= 8 else 2)
    soften = filter_matrix(smooth, len(taps))
    kernel = separable((disk / disk.sum())[None, None], soften, soften)
    rows, columns = (fold(torch.arange(-reach, n + reach, device=x.device), n, "reflect") for n in x.shape[2:])
    padded = x[:, :, rows][:, :, :, columns]
    return F.conv2d(padded, kernel.expand(x.shape[1], 1, -1, -1), groups=x.shape[1])


def motion_blur(x: Tensor, c: tuple[int, float], draw: Draw) -> Tensor:
    """Trail of radius ``c[0]`` and width ``c[1]`` at up to 45 degrees from the rows."""
    return smear(x, draw.uniform(low=-math.pi / 4, high=math.pi / 4), *c)


def zoom_blur(x: Tensor, c: tuple[float, float], draw: Draw) -> Tensor:
    """Mean of the picture and enlargements by 1, 1 + ``c[1]``, ... below 1 + ``c[0]``."""
    count = math.ceil(round(c[0] / c[1], 6))
    return (x + sum(zoomed(x, 1.0 + i * c[1]) for i in range(count))) / (count + 1)


def snow(x: Tensor, c: tuple[float, ...], draw: Draw) -> Tensor:
    """Flakes (mean, deviation, enlargement, threshold, trail radius and width) over a whitened picture (weight)."""
    mean, std, zoom, threshold, radius, sigma, keep = c
    flakes = zoomed(mean + std * draw.normal(1, *x.shape[2:]), zoom)
    flakes = torch.where(flakes < threshold, 0.0, flakes).clamp(0.0, 1.0)
    flakes = smear(flakes, draw.uniform(low=-0.75 * math.pi, high=-0.25 * math.pi), int(radius), sigma)
    white = keep * x + (1.0 - keep) * torch.maximum(x, grey(x) * 1.5 + 0.5)
    return white + flakes + flakes.flip(2, 3)


def frost(x: Tensor, c: tuple[float, float], draw: Draw) -> Tensor:
    """Weights of the picture and of ice. The ice is procedural: bright bluish ridges of two plasmas, no photograph."""
    h, w = x.shape[2:]
    ridges = 1.0 - (2.0 * plasma(draw, h, w, 1.7) - 1.0).abs()
    ice = (0.35 + 0.65 * ridges * plasma(draw, h, w, 2.2).sqrt())[:, None]
    tint = 1.0 if x.shape[1] != 3 else torch.linspace(0.85, 1.0, 3, device=x.device)[:, None, None]
    return c[0] * x + c[1] * ice * tint


def fog(x: Tensor, c: tuple[float, float], draw: Draw) -> Tensor:
    """Plasma of strength ``c[0]`` and decay ``c[1]``, the brightest pixel kept as bright."""
    top = x.amax(dim=(1, 2, 3), keepdim=True)
    mist = plasma(draw, x.shape[2], x.shape[3], c[1])[:, None]
    return (x + c[0] * mist) * top / (top + c[0])


def brightness(x: Tensor, c: float, draw: Draw) -> Tensor:
    """Add ``c`` to the value of HSV."""
    value = x.amax(dim=1, keepdim=True)
    raised = (value + c).clamp_max(1.0)
    return torch.where(value > 0, x / value.clamp_min(1e-12), 1.0) * raised


def contrast(x: Tensor, c: float, draw: Draw) -> Tensor:
    """Draw every channel to its mean."""
    mean = x.mean(dim=(2, 3), keepdim=True)
    return (x - mean) * c + mean


def saturate(x: Tensor, c: tuple[float, float], draw: Draw) -> Tensor:
    """Saturation of HSV times ``c[0]`` plus ``c[1]``; grey pixels count as red, as in HSV. Needs three channels."""
    if x.shape[1] != 3:
        return x
    value = x.amax(dim=1, keepdim=True)
    chroma = value - x.amin(dim=1, keepdim=True)
    saturation = (chroma / value.clamp_min(1e-12) * c[0] + c[1]).clamp(0.0, 1.0)
    red = (torch.arange(3, device=x.device) > 0).float().view(1, 3, 1, 1)
    away = torch.where(chroma > 0, (value - x) / chroma.clamp_min(1e-12), red)
    return value - value * saturation * away


def elastic_transform(x: Tensor, c: tuple[float, float, float], draw: Draw) -> Tensor:
    """Three points moved at random (``c[2]``), then a smooth displacement (strength ``c[0]``, width ``c[1]``).

    Both maps are composed and the picture is sampled once, where the original samples twice.
    """
    h, w = x.shape[2:]
    side = min(h, w)
    third = side // 3
    move = draw.uniform(3, 2, low=-c[2] * side, high=c[2] * side)  # of (+,+), (+,-), (-,-) thirds, as (column, row)
    first, second = (move[:, 0] - move[:, 2]) / (2 * third), (move[:, 0] - move[:, 1]) / (2 * third)
    # Columns of the forward map: p + q moves (1, 1), q moves (0, 1).
    a, b = 1.0 + first[:, 0] - second[:, 0], second[:, 0]
    d, e = first[:, 1] - second[:, 1], 1.0 + second[:, 1]
    shift = (move[:, 0] + move[:, 2]) / 2
    det = a * e - b * d
    det = torch.where(det.abs() < 1e-3, 1e-3, det)
    noise = draw.uniform(2, h, w, low=-1.0, high=1.0)
    if c[0] > 0:
        sigma = torch.full((len(x),), c[1] * side, device=x.device)
        radius = int(3.0 * c[1] * side + 0.5)
        kernel = gaussian_kernel(sigma[:1], radius)
        rows, columns = (filter_matrix(kernel, n, "symmetric").expand(len(x), n, n) for n in (h, w))
        noise = separable(noise, rows, columns)
    noise = noise * (c[0] * side)
    # The place in the warped picture, from its centre, then back through the inverse of the affine map.
    u = torch.arange(w, device=x.device) - w // 2 + noise[:, 0] - shift[:, 0, None, None]
    v = torch.arange(h, device=x.device)[:, None] - h // 2 + noise[:, 1] - shift[:, 1, None, None]
    a, b, d, e, det = (t[:, None, None] for t in (a, b, d, e, det))
    px, py = (e * u - b * v) / det + w // 2, (a * v - d * u) / det + h // 2
    grid = torch.stack([(2 * px + 1) / w - 1, (2 * py + 1) / h - 1], dim=3)
    return F.grid_sample(x, grid, mode="bilinear", padding_mode="reflection", align_corners=False)


@full_precision
def pixelate(x: Tensor, c: float, draw: Draw) -> Tensor:
    """Reduced to a part ``c`` of the side and enlarged again, both by the box filter."""
    def there_and_back(size: int) -> Tensor:
        small = max(1, int(size * c))
        both = area_matrix(small, size, x.device) @ area_matrix(size, small, x.device)
        return both.expand(len(x), size, size)

    return separable(x, there_and_back(x.shape[2]), there_and_back(x.shape[3]))


def jpeg_compression(x: Tensor, c: int, draw: Draw) -> Tensor:
    """JPEG of quality ``c``, coded on the CPU: here the host waits for the device. Channels 1 or 3."""
    from torchvision.io import decode_jpeg, encode_jpeg

    levels = (x * 255.0).round().to(torch.uint8).cpu()
    return torch.stack([decode_jpeg(encode_jpeg(row, quality=c)) for row in levels]).to(x.device).float() / 255.0


def spatter(x: Tensor, c: tuple[float, ...], draw: Draw) -> Tensor:
    """Drops (mean, deviation, width, threshold, strength) of water (0) or mud (1).

    Mud is the original's; water takes the depth of the drops as its shade, where the original finds their edges.
    """
    mean, std, width, threshold, strength, muddy = c
    liquid = gaussian(mean + std * draw.normal(1, *x.shape[2:]), width)
    wet = liquid > threshold
    if muddy:
        cover = gaussian(wet.float(), strength)
        cover = torch.where(cover < 0.8, 0.0, cover)
        return x * (1.0 - cover) + cover * _colour((63, 42, 20), x)
    depth = liquid * wet
    depth = strength * depth / depth.amax(dim=(1, 2, 3), keepdim=True).clamp_min(1e-12)
    return x + depth * _colour((175, 238, 238), x)


def _colour(rgb: tuple[int, int, int], x: Tensor) -> Tensor:
    """A colour of 8 bits to add to pictures; its mean where they do not have three channels. (1, C or 1, 1, 1)."""
    values = [v / 255.0 for v in rgb] if x.shape[1] == 3 else [sum(rgb) / 765.0]
    return torch.stack([x.new_full((1, 1), v) for v in values])[None]


# ------------------------------------------------------------------------------------------------------------- speech
# (x, constant, draw, length, rate) -> waveforms; the caller zeroes the padding.

def noise(x: Tensor, c: float, draw: Draw, length: Tensor | None, rate: int) -> Tensor:
    """Pink noise at ``c`` dB."""
    return add_noise(x, coloured_noise(draw, x.shape[1], 1.0), x.new_full((len(x), 1), c), length)


def reverb(x: Tensor, c: tuple[float, float], draw: Draw, length: Tensor | None, rate: int) -> Tensor:
    """A room of ``c[0]`` seconds with the direct sound ``c[1]`` dB over the echo."""
    rt60, ratio = (x.new_full((len(x), 1), v) for v in c)
    return reverberate(x, draw.normal(max(1, round(c[0] * rate))), rt60, ratio, rate, length)


def telephone(x: Tensor, c: int, draw: Draw, length: Tensor | None, rate: int) -> Tensor:
    """Only 300 to 3400 Hz, then mu-law with ``c`` bits."""
    spectrum = torch.fft.rfft(x)
    frequency = torch.linspace(0.0, rate / 2, spectrum.shape[1], device=x.device)
    x = torch.fft.irfft(spectrum * ((frequency >= 300.0) & (frequency <= 3400.0)), x.shape[1])
    peak = x.abs().amax(dim=1, keepdim=True).clamp_min(1e-12)
    coded = torch.sign(x) * torch.log1p(255.0 * (x / peak).abs()) / math.log(256.0)
    levels = 2 ** (c - 1) - 1
    coded = (coded * levels).round() / levels
    return peak * torch.sign(coded) * torch.expm1(coded.abs() * math.log(256.0)) / 255.0


def clipping(x: Tensor, c: float, draw: Draw, length: Tensor | None, rate: int) -> Tensor:
    """Clip at a part of the peak, the loudness kept."""
    level = c * x.abs().amax(dim=1, keepdim=True)
    clipped = x.clamp(-level, level)
    return clipped * (power(x, length) / power(clipped, length).clamp_min(1e-12)).sqrt()


def speech_gain(x: Tensor, c: float, draw: Draw, length: Tensor | None, rate: int) -> Tensor:
    """Softer by ``c`` dB."""
    return x * 10.0 ** (-c / 20.0)


def speed(x: Tensor, c: float, draw: Draw, length: Tensor | None, rate: int) -> Tensor:
    """Faster or slower by ``c``, by a coin."""
    return change_speed(x, torch.where(draw.chance(0.5, 1), c, 1.0 / c), length)


# ------------------------------------------------------------------------------------------------------------- series
# (x, constant, draw, length) -> series; the caller zeroes the padding.

def series_noise(x: Tensor, c: float, draw: Draw, length: Tensor | None) -> Tensor:
    """White noise of ``c`` standard deviations of the channel."""
    return x + c * moments(x, length)[1] * draw.normal(x.shape[-1], x.shape[1]).transpose(1, 2)


def series_gain(x: Tensor, c: float, draw: Draw, length: Tensor | None) -> Tensor:
    """Sensor gain of ``c`` or its inverse per channel."""
    return x * torch.where(draw.chance(0.5, x.shape[1], 1), c, 1.0 / c)


def drift(x: Tensor, c: float, draw: Draw, length: Tensor | None) -> Tensor:
    """A smooth wander per channel from zero on, of ``c`` standard deviations at its four later knots."""
    knots = draw.normal(x.shape[1], 5) * (torch.arange(5, device=x.device) > 0)
    return x + c * moments(x, length)[1] * smooth_curve(knots, progress(x, steps(x, length)))


def dropout(x: Tensor, c: float, draw: Draw, length: Tensor | None) -> Tensor:
    """Every channel reads its mean during one stretch of a part ``c`` of the time, each at a time of its own."""
    channels, size = x.shape[1:]
    n = steps(x, length)[:, None]
    width = (c * n).round()
    first = (draw.uniform(channels) * (n - width + 1)).floor()[:, :, None]
    step = torch.arange(size, device=x.device)
    return torch.where((step >= first) & (step < first + width[:, :, None]), moments(x, length)[0], x)


def resample(x: Tensor, c: float, draw: Draw, length: Tensor | None) -> Tensor:
    """A sensor with a part ``c`` of the sampling rate, its readings joined by straight lines."""
    last = (steps(x, length) - 1).clamp_min(0)[:, None]
    step = torch.arange(x.shape[-1], device=x.device)
    left = (step * c).floor() / c
    right = torch.minimum(left + 1.0 / c, last)
    left = torch.minimum(left, last)
    weight = ((step - left) / (right - left).clamp_min(1e-6)).clamp(0.0, 1.0)
    return torch.lerp(interpolate(x, left), interpolate(x, right), spread(weight, x))


def offset(x: Tensor, c: float, draw: Draw, length: Tensor | None) -> Tensor:
    """Shift every channel by ``c`` standard deviations, either way."""
    return x + c * moments(x, length)[1] * (2.0 * draw.chance(0.5, x.shape[1], 1).float() - 1.0)


# ---------------------------------------------------------------------------------------------------------- operation

IMAGES: dict[str, Callable[..., Tensor]] = {f.__name__: f for f in (
    gaussian_noise, shot_noise, impulse_noise, defocus_blur, glass_blur, motion_blur, zoom_blur, snow, frost, fog,
    brightness, contrast, elastic_transform, pixelate, jpeg_compression,
    speckle_noise, gaussian_blur, spatter, saturate)}
WAVEFORMS: dict[str, Callable[..., Tensor]] = {
    "noise": noise, "reverb": reverb, "telephone": telephone, "clipping": clipping, "gain": speech_gain, "speed": speed}
SEQUENCES: dict[str, Callable[..., Tensor]] = {
    "gaussian_noise": series_noise, "gain": series_gain, "drift": drift, "dropout": dropout, "resample": resample,
    "offset": offset}


def corruption_names(modality: Modality) -> tuple[str, ...]:
    """Names of the corruptions of a modality; for images the 15 of the benchmark, then its 4 spares."""
    return tuple({"images": IMAGES, "speech": WAVEFORMS, "series": SEQUENCES}[modality])


class Corruption:
    """One corruption at one severity, an operation of a view.

    Args:
        name: one of `corruption_names`.
        severity: 1 to 5.
        modality: ``images``, ``speech`` or ``series``.
        family: constants for images: ``cifar``, ``imagenet`` or ``digits``; None takes CIFAR's for sides of up to 64
            pixels and ImageNet's above.
        rate: samples per second of waveforms.

    Raises:
        ValueError: the name, severity or family is not known.
    """

    def __init__(self, name: str, severity: int = 5, modality: Modality = "images", family: Family | None = None,
                 rate: int = 16000) -> None:
        if name not in corruption_names(modality):
            raise ValueError(f"no corruption {name!r} of {modality}; there are {', '.join(corruption_names(modality))}")
        if severity not in range(1, 6):
            raise ValueError(f"severity={severity} of {name} must be a whole number from 1 to 5")
        if family not in (None, "cifar", "imagenet", "digits"):
            raise ValueError(f"family={family!r} of {name} must be cifar, imagenet, digits or None")
        self.name = name
        self.severity = severity
        self.modality = modality
        self.family = family
        self.rate = rate

    def __call__(self, x: Tensor, draw: Draw, length: Tensor | None = None) -> Tensor:
        level = self.severity - 1
        if self.modality == "images":
            family = self.family or ("cifar" if max(x.shape[2:]) <= 64 else "imagenet")
            constants = {"cifar": CIFAR, "imagenet": IMAGENET, "digits": DIGITS}[family][self.name][level]
            return IMAGES[self.name](x, constants, draw).clamp(0.0, 1.0)
        if self.modality == "speech":
            return keep_valid(WAVEFORMS[self.name](x, SPEECH[self.name][level], draw, length, self.rate), length)
        return keep_valid(SEQUENCES[self.name](x, SERIES[self.name][level], draw, length), length)
