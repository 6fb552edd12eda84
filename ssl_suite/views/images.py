"""Operations of picture views: float pictures (B, C, H, W) in [0, 1] in and out, every parameter drawn per sample.

Whatever is linear and acts on rows and columns apart (crop and resize, blur) is written as two small matrices per
sample and applied by two batched matrix products, which gives exact antialiasing for nothing; whatever turns or shears
is composed into one affine map and sampled once. Products of matrices and convolutions stay in float32 under autocast.
Colour operations leave pictures of one channel as they are; those that need hues do nothing unless there are three.

Measured 2026-11-29 on 2 CPU cores (2 threads): RandomResizedCrop with flip + ColorJitter + Greyscale, the SimCLR
recipe, at 32 pixels and batch 256 takes 0.09 of the time of torchvision v2 called sample by sample and 0.53 of kornia's,
whose draws cannot be repeated sample by sample (``scripts/bench.py views``; 9 rounds).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms.v2 import functional as tv

from ssl_suite.functional.precision import full_precision
from ssl_suite.functional.random import Draw
from ssl_suite.functional.segmentation import IGNORE

Border = Literal["reflect", "symmetric", "edge"]


def column(values: Tensor) -> Tensor:
    """One number per sample, (B,), shaped to act on pictures, (B, 1, 1, 1)."""
    return values.view(-1, 1, 1, 1)


def grey(x: Tensor) -> Tensor:
    """Luminance with the ITU-R 601 weights, (B, 1, H, W); pictures without three channels: their mean channel."""
    if x.shape[1] != 3:
        return x.mean(dim=1, keepdim=True)
    return 0.2989 * x[:, :1] + 0.587 * x[:, 1:2] + 0.114 * x[:, 2:]


def fold(index: Tensor, size: int, border: Border) -> Tensor:
    """Bring indices outside [0, size) back in: ``reflect`` cb|abc|ba, ``symmetric`` ba|abc|cb, ``edge`` aa|abc|cc."""
    if border == "edge":
        return index.clamp(0, size - 1)
    if border == "symmetric":
        index = index % (2 * size)
        return torch.minimum(index, 2 * size - 1 - index)
    index = index % max(2 * size - 2, 1)
    return torch.minimum(index, 2 * size - 2 - index)


@full_precision
def separable(x: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Apply one matrix to the rows and one to the columns of every channel.

    Args:
        x: pictures, (B, C, H, W).
        rows: (B, H', H).
        columns: (B, W', W).

    Returns:
        Pictures, (B, C, H', W').
    """
    b, c, h, _ = x.shape
    x = (x.reshape(b, c * h, -1) @ columns.transpose(1, 2)).view(b, c, h, -1)
    x = x.transpose(2, 3).reshape(b, -1, h) @ rows.transpose(1, 2)
    return x.view(b, c, columns.shape[1], rows.shape[1]).transpose(2, 3).contiguous()


def crop_matrix(start: Tensor, extent: Tensor, size: int, out: int) -> Tensor:
    """Weights that cut [start, start + extent) out of ``size`` pixels and resize it to ``out`` pixels.

    The filter is the antialiased triangle of Pillow and torchvision (plain bilinear when enlarging); it looks at no
    pixel outside the window.

    Args:
        start: first pixel of the window, (B,).
        extent: pixels in the window, (B,).
        size: pixels in the picture.
        out: pixels in the result.

    Returns:
        Matrices, (B, out, size), rows summing to one.
    """
    scale = (extent / out)[:, None, None]
    start, stop = start[:, None, None], (start + extent)[:, None, None]
    centre = start + (torch.arange(out, device=start.device)[:, None] + 0.5) * scale
    pixel = torch.arange(size, device=start.device) + 0.5
    weight = (1.0 - (pixel - centre).abs() / scale.clamp_min(1.0)).clamp_min(0.0)
    weight = weight * ((pixel > start) & (pixel < stop))
    return weight / weight.sum(dim=2, keepdim=True)


def nearest(start: Tensor, extent: Tensor, out: int) -> Tensor:
    """The pixel nearest to each of the ``out`` places of the window [start, start + extent), (B, out) int64."""
    place = torch.arange(out, device=start.device) + 0.5
    return (start[:, None] + place * (extent / out)[:, None]).long()


@full_precision
def filter_matrix(kernel: Tensor, size: int, border: Border = "reflect") -> Tensor:
    """Matrices (B, size, size) that correlate ``size`` pixels with an odd kernel per sample, (B, K)."""
    taps = torch.arange(kernel.shape[1], device=kernel.device) - kernel.shape[1] // 2
    pixel = torch.arange(size, device=kernel.device)
    source = fold(pixel[:, None] + taps, size, border)
    return torch.einsum("bt,otp->bop", kernel, (source[:, :, None] == pixel).to(kernel.dtype))


def gaussian_kernel(sigma: Tensor, radius: int) -> Tensor:
    """Normalised Gaussians, (B, 2 radius + 1), of the widths given in pixels, (B,)."""
    taps = torch.arange(-radius, radius + 1, device=sigma.device)
    return torch.softmax(-0.5 * (taps / sigma.clamp_min(1e-3)[:, None]) ** 2, dim=1)


def blur(x: Tensor, sigma: Tensor, radius: int, border: Border = "reflect") -> Tensor:
    """Gaussian blur of a width per sample, sigma (B,) in pixels, cut off at ``radius`` pixels."""
    kernel = gaussian_kernel(sigma, radius)
    return separable(x, filter_matrix(kernel, x.shape[2], border), filter_matrix(kernel, x.shape[3], border))


def affine_grid(linear: Tensor, offset: Tensor, h: int, w: int) -> Tensor:
    """Where each pixel of the result comes from, (B, h, w, 2), as `grid_sample` counts; see `warp`."""
    row_x = torch.stack([linear[:, 0, 0], linear[:, 0, 1] * (h / w), offset[:, 0] * (2.0 / w)], dim=1)
    row_y = torch.stack([linear[:, 1, 0] * (w / h), linear[:, 1, 1], offset[:, 1] * (2.0 / h)], dim=1)
    return F.affine_grid(torch.stack([row_x, row_y], dim=1), [len(linear), 1, h, w], align_corners=False)


@full_precision
def warp(x: Tensor, linear: Tensor, offset: Tensor, padding: str = "zeros") -> Tensor:
    """Sample every picture under an affine map, bilinearly.

    Args:
        x: pictures, (B, C, H, W).
        linear: maps a place in the result to its source, both (column, row) in pixels from the centre, (B, 2, 2).
        offset: added to the source, (B, 2) in pixels.
        padding: ``zeros``, ``border`` or ``reflection``.

    Returns:
        Pictures, (B, C, H, W).
    """
    return F.grid_sample(x, affine_grid(linear, offset, *x.shape[2:]), mode="bilinear", padding_mode=padding, align_corners=False)


@full_precision
def warp_mask(y: Tensor, linear: Tensor, offset: Tensor, padding: str = "zeros") -> Tensor:
    """What `warp` does to pictures, done to targets (B, H, W) int64: the nearest pixel, and `IGNORE` for the zeros outside."""
    grid = affine_grid(linear, offset, *y.shape[1:])
    values = F.grid_sample((y - IGNORE).float()[:, None], grid, mode="nearest", padding_mode=padding, align_corners=False)
    return values[:, 0].long() + IGNORE


def matrix(a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> Tensor:
    """[[a, b], [c, d]] for each sample, (B, 2, 2)."""
    return torch.stack([a, b, c, d], dim=1).view(-1, 2, 2)


@full_precision
def product(left: Tensor, right: Tensor) -> Tensor:
    """Matrix product of each sample."""
    return left @ right


def shift_hue(x: Tensor, turn: Tensor) -> Tensor:
    """Turn the hue of RGB pictures by a part of the circle, (B,), keeping HSV saturation and value."""
    if x.shape[1] != 3:
        return x
    red, green, blue = x.unbind(dim=1)
    high, low = x.amax(dim=1), x.amin(dim=1)
    chroma = high - low
    safe = torch.where(chroma > 0, chroma, 1.0)
    hue = torch.where(high == green, 2.0 + (blue - red) / safe, 4.0 + (red - green) / safe)
    hue = torch.where(high == red, (green - blue) / safe, hue) + 6.0 * turn.view(-1, 1, 1)
    k = hue[:, None] + torch.arange(5, 0, -2, device=x.device).view(1, 3, 1, 1)
    k.sub_(torch.floor(k / 6.0).mul_(6.0))  # k modulo 6, several times as fast as %
    return high[:, None] - chroma[:, None] * k.sub_(2.0).abs_().neg_().add_(2.0).clamp_(0.0, 1.0)


def mix_in(x: Tensor, other: Tensor, factor: Tensor) -> Tensor:
    """``other`` at factor 0, ``x`` at factor 1 and beyond it above, factor (B,), clipped to [0, 1]."""
    return torch.lerp(other, x, column(factor)).clamp_(0.0, 1.0)


class InPlace:
    """An operation that leaves every pixel where it is, and so leaves masks alone."""

    def mask(self, y: Tensor, draw: Draw) -> Tensor:
        """Targets (B, H, W), unchanged."""
        return y


class Affine:
    """Rotation, translation, scaling, shear and mirroring in one bilinear sampling.

    Args:
        rotation: largest angle in degrees, either way.
        translate: largest move along each axis, as a part of the side.
        scale: range of the enlargement.
        shear: largest shear angle in degrees, either way, along the rows.
        flip: probability of mirroring left to right.
        padding: what lies outside: ``zeros``, ``border`` or ``reflection``.
    """

    def __init__(self, rotation: float = 0.0, translate: float = 0.0, scale: tuple[float, float] = (1.0, 1.0),
                 shear: float = 0.0, flip: float = 0.0, padding: str = "zeros") -> None:
        self.rotation = math.radians(rotation)
        self.translate = translate
        self.scale = scale
        self.shear = math.radians(shear)
        self.flip = flip
        self.padding = padding

    def place(self, draw: Draw, h: int, w: int) -> tuple[Tensor, Tensor]:
        """Map and move of each sample, (B, 2, 2) and (B, 2), as `warp` takes them."""
        angle = draw.uniform(low=-self.rotation, high=self.rotation)
        zoom = 1.0 / draw.uniform(low=self.scale[0], high=self.scale[1])
        shear = draw.uniform(low=-self.shear, high=self.shear).tan()
        mirror = 1.0 - 2.0 * draw.chance(self.flip).float()
        move = draw.uniform(2, low=-self.translate, high=self.translate)
        cos, sin = angle.cos() * zoom, angle.sin() * zoom
        linear = matrix(mirror * cos, mirror * (cos * shear - sin), sin, sin * shear + cos)
        return linear, torch.stack([move[:, 0] * w, move[:, 1] * h], dim=1)

    def __call__(self, x: Tensor, draw: Draw, length: Tensor | None = None) -> Tensor:
        return warp(x, *self.place(draw, *x.shape[2:]), self.padding)

    def mask(self, y: Tensor, draw: Draw) -> Tensor:
        """Targets (B, H, W), moved likewise."""
        return warp_mask(y, *self.place(draw, *y.shape[1:]), self.padding)


class RandomResizedCrop:
    """Random window resized to the picture, and mirrored (Szegedy et al. 2015; the crop of SimCLR and its successors).

    Windows are drawn as torchvision draws them: ten trials of area and log aspect ratio, whole pixels, the first that
    fits; if none fits, the centre, whole or cut to the ratio. Resizing is antialiased.

    Args:
        scale: range of the window's part of the area.
        ratio: range of its width over its height.
        flip: probability of mirroring left to right.
        size: side of the result: pixels as a whole number, part of the picture's side as a fraction below 1 (the small crops of
            SwAV); None keeps the size.

    Raises:
        ValueError: a size that is not above 0, or a fraction above 1.
    """

    def __init__(self, scale: tuple[float, float] = (0.08, 1.0), ratio: tuple[float, float] = (3 / 4, 4 / 3),
                 flip: float = 0.5, size: int | float | None = None) -> None:
        if size is not None and (size <= 0 or (isinstance(size, float) and size > 1)):
            raise ValueError(f"size must be pixels (1, 2, ...) or a part of the side in (0, 1], got {size}")
        self.scale = scale
        self.ratio = ratio
        self.flip = flip
        self.size = size

    def windows(self, draw: Draw, h: int, w: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Top, left, height and width of a window per sample in whole pixels, each (B,) float."""
        area = draw.uniform(10, low=self.scale[0], high=self.scale[1]) * (h * w)
        ratio = draw.uniform(10, low=math.log(self.ratio[0]), high=math.log(self.ratio[1])).exp()
        widths, heights = (area * ratio).sqrt().round(), (area / ratio).sqrt().round()
        fits = (widths >= 1) & (widths <= w) & (heights >= 1) & (heights <= h)
        first = fits.float().argmax(dim=1, keepdim=True)
        none = ~fits.any(dim=1)
        whole_h, whole_w = min(h, round(w / self.ratio[0])), min(w, round(h * self.ratio[1]))
        height = heights.gather(1, first)[:, 0].masked_fill(none, whole_h)
        width = widths.gather(1, first)[:, 0].masked_fill(none, whole_w)
        top, left = (draw.uniform() * (h - height + 1)).floor(), (draw.uniform() * (w - width + 1)).floor()
        top = torch.where(none, ((h - height) / 2).floor(), top)
        left = torch.where(none, ((w - width) / 2).floor(), left)
        return top, left, height, width

    def __call__(self, x: Tensor, draw: Draw, length: Tensor | None = None) -> Tensor:
        h, w = x.shape[2:]
        top, left, height, width = self.windows(draw, h, w)
        out_h, out_w = self.sides(h, w)
        rows = crop_matrix(top, height, h, out_h)
        columns = crop_matrix(left, width, w, out_w)
        mirrored = draw.chance(self.flip)[:, None, None]
        return separable(x, rows, torch.where(mirrored, columns.flip(1), columns))

    def mask(self, y: Tensor, draw: Draw) -> Tensor:
        """Targets (B, H', W') of the same window: the nearest pixel."""
        h, w = y.shape[1:]
        top, left, height, width = self.windows(draw, h, w)
        out_h, out_w = self.sides(h, w)
        rows, columns = nearest(top, height, out_h), nearest(left, width, out_w)
        columns = torch.where(draw.chance(self.flip)[:, None], columns.flip(1), columns)
        return y[torch.arange(len(y), device=y.device)[:, None, None], rows[:, :, None], columns[:, None]]

    def sides(self, h: int, w: int) -> tuple[int, int]:
        """Rows and columns of the result."""
        out_h, out_w = (round(self.size * side) if isinstance(self.size, float) else self.size or side for side in (h, w))
        return out_h, out_w


class Shift:
    """Move by whole pixels, the picture continued by reflection, and mirror: the weak view of FixMatch.

    Args:
        fraction: largest move along each axis as a part of the side, rounded to pixels.
        flip: probability of mirroring left to right; keep 0 where a mirror image is another class.
    """

    def __init__(self, fraction: float = 0.125, flip: float = 0.0) -> None:
        self.fraction = fraction
        self.flip = flip

    def source(self, draw: Draw, size: int) -> Tensor:
        """Source pixel of each pixel, (B, size)."""
        reach = round(self.fraction * size)
        move = draw.integers(2 * reach + 1) - reach
        return fold(torch.arange(size, device=move.device) + move[:, None], size, "reflect")

    def mask(self, y: Tensor, draw: Draw) -> Tensor:
        """Targets (B, H, W), moved likewise."""
        return self(y[:, None], draw)[:, 0]

    def __call__(self, x: Tensor, draw: Draw, length: Tensor | None = None) -> Tensor:
        rows, columns = self.source(draw, x.shape[2]), self.source(draw, x.shape[3])
        columns = torch.where(draw.chance(self.flip)[:, None], columns.flip(1), columns)
        sample = torch.arange(len(x), device=x.device)[:, None, None, None]
        channel = torch.arange(x.shape[1], device=x.device)[:, None, None]
        return x[sample, channel, rows[:, None, :, None], columns[:, None, None, :]]


class ColorJitter(InPlace):
    """Brightness, contrast, saturation and hue by random amounts in random order, as in torchvision and SimCLR.

    Args:
        brightness: factors are drawn from [max(0, 1 - brightness), 1 + brightness].
        contrast: likewise.
        saturation: likewise.
        hue: largest turn of the hue, as a part of the circle, at most 0.5.
        p: probability that a sample is changed at all.
    """

    def __init__(self, brightness: float = 0.0, contrast: float = 0.0, saturation: float = 0.0, hue: float = 0.0,
                 p: float = 1.0) -> None:
        if not 0.0 <= hue <= 0.5:
            raise ValueError(f"ColorJitter: hue={hue} is not in [0, 0.5], the part of the colour circle to turn by")
        self.strength = (brightness, contrast, saturation)
        self.hue = hue
        self.p = p

    def __call__(self, x: Tensor, draw: Draw, length: Tensor | None = None) -> Tensor:
        chosen = draw.chance(self.p)
        factors = torch.stack([draw.uniform(low=max(0.0, 1.0 - s), high=1.0 + s) for s in self.strength], dim=1)
        factors = torch.where(chosen[:, None], factors, 1.0)
        order = draw.permutation(3)
        turn = draw.uniform(low=-self.hue, high=self.hue) * chosen
        if self.hue == 0.0:
            return self.blend(x, order, factors)
        # The hue stands before, between or after the three others. A factor of one changes nothing.
        before = torch.arange(3, device=x.device) < draw.integers(4)[:, None]
        in_order = factors.gather(1, order)
        back = order.argsort(dim=1)
        x = self.blend(x, order, torch.where(before, in_order, 1.0).gather(1, back))
        return self.blend(shift_hue(x, turn), order, torch.where(before, 1.0, in_order).gather(1, back))

    @staticmethod
    def blend(x: Tensor, order: Tensor, factors: Tensor) -> Tensor:
        """Brightness, contrast and saturation in the order given.

        Args:
            x: pictures, (B, C, H, W).
            order: number of the operation at each place, (B, 3); 0 brightness, 1 contrast, 2 saturation.
            factors: factor of each operation, (B, 3), by its number.

        Returns:
            Pictures, (B, C, H, W).
        """
        for place in range(3):
            kind = order[:, place : place + 1]
            light = grey(x)
            mean = light.mean(dim=(2, 3), keepdim=True)
            other = light * column(kind == 2) + mean * column(kind == 1)
            x = mix_in(x, other, factors.gather(1, kind))
        return x


class Greyscale(InPlace):
    """Replace all channels by the luminance.

    Args:
        p: probability per sample.
    """

    def __init__(self, p: float = 0.2) -> None:
        self.p = p

    def __call__(self, x: Tensor, draw: Draw, length: Tensor | None = None) -> Tensor:
        return torch.where(column(draw.chance(self.p)), grey(x), x)


class GaussianBlur(InPlace):
    """Gaussian blur, borders reflected, as in SimCLR.

    Args:
        kernel_size: odd number of pixels; SimCLR takes a tenth of the side. At most 2 sides - 1 are of use.
        sigma: range of the width in pixels.
        p: probability per sample.
    """

    def __init__(self, kernel_size: int = 23, sigma: tuple[float, float] = (0.1, 2.0), p: float = 0.5) -> None:
        if kernel_size % 2 == 0:
            raise ValueError(f"GaussianBlur: kernel_size={kernel_size} must be odd")
        self.radius = kernel_size // 2
        self.sigma = sigma
        self.p = p

    def __call__(self, x: Tensor, draw: Draw, length: Tensor | None = None) -> Tensor:
        sigma = draw.uniform(low=self.sigma[0], high=self.sigma[1])
        return torch.where(column(draw.chance(self.p)), blur(x, sigma, self.radius), x)


class Solarize(InPlace):
    """Invert the pixels at or above a threshold (BYOL).

    Args:
        p: probability per sample.
        threshold: in [0, 1].
    """

    def __init__(self, p: float = 0.2, threshold: float = 0.5) -> None:
        self.p = p
        self.threshold = threshold

    def __call__(self, x: Tensor, draw: Draw, length: Tensor | None = None) -> Tensor:
        return torch.where(column(draw.chance(self.p)) & (x >= self.threshold), 1.0 - x, x)


class Brightness(InPlace):
    """Multiply by a factor.

    Args:
        low: smallest factor.
        high: largest factor.
    """

    def __init__(self, low: float = 0.6, high: float = 1.4) -> None:
        self.low = low
        self.high = high

    def __call__(self, x: Tensor, draw: Draw, length: Tensor | None = None) -> Tensor:
        return (x * column(draw.uniform(low=self.low, high=self.high))).clamp_(0.0, 1.0)


class GaussianNoise(InPlace):
    """Add white noise.

    Args:
        std: standard deviation, pictures being in [0, 1].
    """

    def __init__(self, std: float = 0.1) -> None:
        self.std = std

    def __call__(self, x: Tensor, draw: Draw, length: Tensor | None = None) -> Tensor:
        return (x + self.std * draw.normal(*x.shape[1:])).clamp_(0.0, 1.0)


class Cutout:
    """Paint a square over the picture (DeVries and Taylor 2017); its centre may lie anywhere, so that it may stick out.

    Args:
        fraction: side of the square as a part of the shorter side, rounded to pixels.
        p: probability per sample.
        fill: value painted.
    """

    def __init__(self, fraction: float = 0.5, p: float = 1.0, fill: float = 0.5) -> None:
        self.fraction = fraction
        self.p = p
        self.fill = fill

    def hidden(self, draw: Draw, h: int, w: int) -> Tensor:
        """Where the square lies, (B, h, w) bool."""
        side = max(1, round(self.fraction * min(h, w)))

        def inside(size: int) -> Tensor:
            first = draw.integers(size)[:, None] - side // 2
            pixel = torch.arange(size, device=first.device)
            return (pixel >= first) & (pixel < first + side)

        rows, columns = inside(h), inside(w)
        return rows[:, :, None] & columns[:, None, :] & draw.chance(self.p)[:, None, None]

    def __call__(self, x: Tensor, draw: Draw, length: Tensor | None = None) -> Tensor:
        return x.masked_fill(self.hidden(draw, *x.shape[2:])[:, None], self.fill)

    def mask(self, y: Tensor, draw: Draw) -> Tensor:
        """Targets (B, H, W), `IGNORE` under the square."""
        return y.masked_fill(self.hidden(draw, *y.shape[1:]), IGNORE)


def posterize(x: Tensor, bits: Tensor) -> Tensor:
    """Keep the upper bits, (B,) int64, of pictures taken as 8-bit."""
    step = column(2.0 ** (8 - bits).float())
    return torch.floor((x * 255.0).round() / step) * step / 255.0


@full_precision
def sharpen(x: Tensor, factor: Tensor) -> Tensor:
    """Pillow's sharpness: a 3x3 smoothed picture at factor 0, the picture at 1; borders keep their values."""
    return mix_in(x, tv.adjust_sharpness(x, 0.0), factor)


class RandAugment:
    """The strong view of FixMatch: ``n`` of 14 operations, each used with probability ``p``, then a cutout.

    Operations and their ranges, magnitude m = 1..9 drawn for each operation and sample: autocontrast; brightness,
    colour, contrast, sharpness by 0.05 + 0.09 m; equalize; identity; posterize to 4 + floor(0.4 m) bits; rotate by 3 m
    degrees; shear x and y by 0.03 m; solarize from 256 - floor(25.6 m) up; translate x and y by 0.03 m of the side.
    Geometric ones go either way and fill with black.

    Deviations from the code in common use (Pillow): geometric operations of one sample are composed and applied once,
    after the others, bilinearly instead of by nearest pixel; the cutout's square has exactly the side asked for, where
    Pillow's rectangle includes its far edge. Every colour operation runs on the whole batch and is selected by a mask:
    to pick out rows, the host would have to wait for the device.

    Args:
        n: operations per sample.
        p: probability that an operation drawn is applied.
        cutout: side of the final square as a part of the shorter side (16 of 32 pixels); 0 for none.
    """

    operations = ("autocontrast", "brightness", "colour", "contrast", "equalize", "identity", "posterize", "rotate",
                  "sharpness", "shear_x", "shear_y", "solarize", "translate_x", "translate_y")

    def __init__(self, n: int = 2, p: float = 0.5, cutout: float = 0.5) -> None:
        self.n = n
        self.p = p
        self.cutout = Cutout(cutout) if cutout else None

    def __call__(self, x: Tensor, draw: Draw, length: Tensor | None = None) -> Tensor:
        chosen = draw.integers(len(self.operations), self.n)
        magnitude = 1 + draw.integers(9, self.n)
        sign = 1.0 - 2.0 * draw.chance(0.5, self.n).float()
        chosen = chosen.masked_fill(~draw.chance(self.p, self.n), self.operations.index("identity"))
        linear = torch.eye(2, device=x.device).expand(len(x), 2, 2)
        offset = x.new_zeros(len(x), 2)
        for i in range(self.n):
            names = [chosen[:, i] == k for k in range(len(self.operations))]
            is_op = dict(zip(self.operations, names, strict=True))
            x = self.colours(x, is_op.__getitem__, magnitude[:, i])
            turn, move = self.geometry(is_op.__getitem__, magnitude[:, i] * sign[:, i], x.shape[2], x.shape[3])
            # The later map acts on the result: source = earlier(later(place)).
            offset = offset + product(linear, move[:, :, None])[:, :, 0]
            linear = product(linear, turn)
        x = warp(x, linear, offset).clamp_(0.0, 1.0)
        return x if self.cutout is None else self.cutout(x, draw)

    @staticmethod
    def colours(x: Tensor, is_op: Callable[[str], Tensor], m: Tensor) -> Tensor:
        """The operations on values, each where ``is_op(name)`` (B,) says so, with magnitude m (B,) of 1..9."""
        factor = 0.05 + 0.09 * m
        light = grey(x)
        other = light * column(is_op("colour")) + light.mean(dim=(2, 3), keepdim=True) * column(is_op("contrast"))
        blended = is_op("brightness") | is_op("colour") | is_op("contrast")
        levels = (x * 255.0).round()
        candidates = {
            "autocontrast": tv.autocontrast(x),
            "equalize": tv.equalize(x),
            "posterize": posterize(x, 4 + m * 4 // 10),
            "sharpness": sharpen(x, factor),
            "solarize": torch.where(levels >= column(256 - m * 256 // 10), 1.0 - x, x),
        }
        out = mix_in(x, other, torch.where(blended, factor, 1.0))
        for name, candidate in candidates.items():
            out = torch.where(column(is_op(name)), candidate, out)
        return out

    @staticmethod
    def geometry(is_op: Callable[[str], Tensor], m: Tensor, h: int, w: int) -> tuple[Tensor, Tensor]:
        """Maps of the geometric operations, (B, 2, 2) and (B, 2), from signed magnitudes m (B,); identity elsewhere."""
        angle = m * math.radians(3.0) * is_op("rotate")
        cos, sin = angle.cos(), angle.sin()
        linear = matrix(cos, sin + 0.03 * m * is_op("shear_x"), -sin + 0.03 * m * is_op("shear_y"), cos)
        move_x = (3.0 * m * w / 100.0).trunc() * is_op("translate_x")
        move_y = (3.0 * m * h / 100.0).trunc() * is_op("translate_y")
        return linear, torch.stack([move_x, move_y], dim=1)
