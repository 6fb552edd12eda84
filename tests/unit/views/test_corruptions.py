"""Corruptions: growth with severity, statistics, references."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from PIL import Image

from ssl_suite.views.corruptions import (
    CIFAR,
    DIGITS,
    IMAGENET,
    IMAGES,
    SPEECH,
    Corruption,
    corruption_names,
    pixelate,
    plasma,
    poisson,
)

# The benchmark's constants do not make these grow at every step in mean absolute difference.
UNEVEN = {"glass_blur", "elastic_transform", "saturate", "spatter", "frost", "snow"}


def growth(x: torch.Tensor, make_draw, names, **options) -> dict[str, list[float]]:
    return {name: [float((Corruption(name, s, **options)(x, make_draw(len(x)), None) - x).abs().mean())
                   for s in range(1, 6)] for name in names}


@pytest.mark.parametrize("family", ["cifar", "imagenet", "digits"])
def test_pictures_get_worse_with_severity(pictures, make_draw, family):
    x = pictures.repeat(4, 1, 1, 1)
    for name, changes in growth(x, make_draw, corruption_names("images"), family=family).items():
        assert changes[0] > 1e-4, (name, changes)
        if name not in UNEVEN:
            assert all(b >= a * 0.98 for a, b in pairwise(changes)), (name, changes)
            assert changes[-1] > 1.1 * changes[0], (name, changes)


def test_waves_and_series_get_worse_with_severity(waves, series, make_draw):
    tables = [growth(waves.repeat(4, 1)[:, :400], make_draw, set(SPEECH) - {"speed"}, modality="speech", rate=8000),
              growth(series.repeat(8, 1, 1), make_draw, corruption_names("series"), modality="series")]
    slow = torch.sin(torch.arange(400) / 60.0).expand(8, 400)  # slow enough for a speed to leave the phase behind
    tables.append(growth(slow, make_draw, ["speed"], modality="speech"))
    for table in tables:
        for name, changes in table.items():
            assert all(b > a for a, b in pairwise(changes)), (name, changes)


def test_names_and_constants_are_complete():
    assert len(corruption_names("images")) == 19
    assert set(CIFAR) == set(IMAGENET) == set(DIGITS) == set(IMAGES)
    assert all(len(row) == 5 for table in (CIFAR, IMAGENET, DIGITS, SPEECH) for row in table.values())
    with pytest.raises(ValueError, match="no corruption 'rain' of images; there are gaussian_noise"):
        Corruption("rain")
    with pytest.raises(ValueError, match="severity=6"):
        Corruption("fog", 6)
    with pytest.raises(ValueError, match="family='mnist'"):
        Corruption("fog", family="mnist")


def test_family_follows_the_size(make_draw):
    for side, family in ((64, "cifar"), (65, "imagenet")):
        x = torch.full((2, 3, side, side), 0.5)
        chosen = Corruption("gaussian_noise", 5)(x, make_draw(2))
        assert torch.equal(chosen, Corruption("gaussian_noise", 5, family=family)(x, make_draw(2)))


@pytest.mark.parametrize("rate", [0.5, 3.0, 11.0, 13.0, 60.0, 400.0])
def test_poisson_numbers(make_draw, rate):
    counts = poisson(torch.full((200, 200), rate), make_draw(200))
    assert torch.equal(counts, counts.round())
    assert abs(float(counts.mean()) / rate - 1) < 0.02
    assert abs(float(counts.var()) / rate - 1) < 0.04
    grid = torch.arange(int(rate + 6 * rate**0.5) + 2).float()
    expected = torch.special.gammaincc(grid + 1, torch.full_like(grid, rate))
    measured = (counts.flatten()[:, None] <= grid).float().mean(0)
    assert (measured - expected).abs().max() < 0.015


def test_noises_have_their_amounts(make_draw):
    grey = torch.full((8, 3, 32, 32), 0.5)
    assert abs(float(Corruption("gaussian_noise", 5)(grey, make_draw(8)).std()) - 0.10) < 0.003
    speckled = Corruption("speckle_noise", 5)(grey, make_draw(8))
    assert abs(float(speckled.std()) - 0.10) < 0.003
    hit = Corruption("impulse_noise", 5, family="digits")(grey, make_draw(8))
    assert abs(float((hit == 0).float().mean()) - 0.15) < 0.01
    assert abs(float((hit == 1).float().mean()) - 0.15) < 0.01


def test_contrast_and_brightness_closed_forms(pictures, make_draw):
    dull = Corruption("contrast", 5)(pictures, make_draw(6))
    assert torch.allclose(dull.mean((2, 3)), pictures.mean((2, 3)), atol=1e-5)
    assert torch.allclose(dull.std((2, 3)), 0.15 * pictures.std((2, 3)), atol=1e-4)
    bright = Corruption("brightness", 5)(pictures, make_draw(6))
    assert torch.allclose(bright.amax(1), (pictures.amax(1) + 0.3).clamp(max=1), atol=1e-5)
    dark = Corruption("brightness", 5)(torch.zeros(1, 1, 4, 4), make_draw(1))
    assert torch.allclose(dark, torch.tensor(0.3))


def test_pixelate_equals_pillow(pictures, make_draw):
    levels = (pictures[0].permute(1, 2, 0) * 255).round().to(torch.uint8).numpy()
    small = Image.fromarray(levels).resize((int(20 * 0.65), int(16 * 0.65)), Image.Resampling.BOX)
    expected = np.asarray(small.resize((20, 16), Image.Resampling.BOX)) / 255.0
    mine = pixelate(pictures[:1], 0.65, make_draw(1))[0].permute(1, 2, 0).numpy()
    assert np.abs(mine - expected).max() < 1.5 / 255


def test_plasma_fills_the_range_smoothly(make_draw):
    smooth, rough = plasma(make_draw(8), 32, 20, 3.0), plasma(make_draw(8), 32, 20, 1.2)
    assert smooth.shape == (8, 32, 20)
    assert smooth.min() >= 0
    assert smooth.max() <= 1
    assert smooth.diff(dim=2).abs().mean() < 0.6 * rough.diff(dim=2).abs().mean()


def test_telephone_keeps_its_band(make_draw):
    time = torch.arange(8000) / 16000
    x = sum(torch.sin(2 * torch.pi * f * time) for f in (100.0, 1000.0, 5000.0))[None]
    before = torch.fft.rfft(x).abs()[0]
    after = torch.fft.rfft(Corruption("telephone", 1, "speech")(x, make_draw(1))).abs()[0]
    assert after[500] > 0.9 * before[500]
    assert after[50] < 0.05 * before[50]
    assert after[2500] < 0.05 * before[2500]


def test_dropout_reads_the_mean_for_the_time_asked(series, make_draw):
    y = Corruption("dropout", 5, "series")(series, make_draw(6), None)
    mean = series.mean(-1, keepdim=True)
    assert torch.equal(((y - mean).abs() < 1e-5).sum(-1), torch.full((6, 3), 50))
