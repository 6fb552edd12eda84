"""Picture operations against torchvision and closed forms."""

from __future__ import annotations

import math

import pytest
import torch
from torchvision.transforms import RandomResizedCrop, v2
from torchvision.transforms.v2 import functional as tv

from ssl_suite.views import images


def test_crop_windows_are_distributed_as_in_torchvision(make_draw):
    crop = images.RandomResizedCrop((0.08, 1.0))
    top, left, height, width = crop.windows(make_draw(4000), 32, 40)
    area = (height * width / (32 * 40)).sort().values
    torch.manual_seed(0)
    picture = torch.empty(3, 32, 40)
    windows = [RandomResizedCrop.get_params(picture, [0.08, 1.0], [3 / 4, 4 / 3]) for _ in range(4000)]
    reference = torch.tensor(windows).float()
    expected = (reference[:, 2] * reference[:, 3] / (32 * 40)).sort().values
    assert (area - expected).abs().max() < 0.05
    ratio = (width / height).log()
    assert abs(float(ratio.mean() - (reference[:, 3] / reference[:, 2]).log().mean())) < 0.02
    assert abs(float(ratio.std() - (reference[:, 3] / reference[:, 2]).log().std())) < 0.02
    assert abs(float(top.mean() - reference[:, 0].mean())) < 0.4
    assert abs(float(left.mean() - reference[:, 1].mean())) < 0.4
    assert (top + height).max() <= 32
    assert (left + width).max() <= 40


def test_windows_that_do_not_fit_fall_back_to_the_centre(make_draw):
    top, left, height, width = images.RandomResizedCrop((1.0, 1.0), (0.9, 1.1)).windows(make_draw(3), 10, 40)
    assert height.tolist() == [10] * 3
    assert width.tolist() == [11] * 3
    assert top.tolist() == [0] * 3
    assert left.tolist() == [14] * 3


@pytest.mark.parametrize("size", [None, 8, 33])
def test_crop_equals_resized_crop(pictures, make_draw, size):
    crop = images.RandomResizedCrop((0.2, 1.0), flip=0.0, size=size)
    views = crop(pictures, make_draw(6))
    for x, view, window in zip(pictures, views, zip(*crop.windows(make_draw(6), 16, 20), strict=True), strict=True):
        expected = tv.resized_crop(x, *(int(v) for v in window), size=[size or 16, size or 20], antialias=True)
        assert torch.allclose(view, expected, atol=1e-5)


def test_size_as_a_part_of_the_side(pictures, make_draw):
    part, pixels = images.RandomResizedCrop(size=0.5), images.RandomResizedCrop(size=8)
    assert part(pictures, make_draw(6)).shape[2:] == (8, 10)
    assert torch.equal(part(pictures[..., :16], make_draw(6)), pixels(pictures[..., :16], make_draw(6)))
    with pytest.raises(ValueError, match="size must be pixels"):
        images.RandomResizedCrop(size=1.5)


def test_flip_rate(make_draw):
    x = torch.linspace(0, 1, 8).expand(2000, 1, 8, 8)
    whole = images.RandomResizedCrop((1, 1), (1, 1), flip=0.3)
    for op in (whole, images.Affine(flip=0.3), images.Shift(0.0, flip=0.3)):
        view = op(x, make_draw(2000))
        flipped = view[:, 0, 0, 0] > view[:, 0, 0, -1]
        assert abs(float(flipped.float().mean()) - 0.3) < 0.04
        assert torch.allclose(view[flipped], x.flip(-1)[flipped], atol=1e-6)
        assert torch.allclose(view[~flipped], x[~flipped], atol=1e-6)


def test_shift_is_a_crop_of_the_reflected_picture(pictures, make_draw):
    padded = torch.nn.functional.pad(pictures, (2, 2, 2, 2), mode="reflect")
    views = images.Shift(0.125)(pictures, make_draw(6))
    moves = set()
    for view, wide in zip(views, padded, strict=True):
        hits = [(i, j) for i in range(5) for j in range(5) if torch.equal(wide[:, i : i + 16, j : j + 20], view)]
        assert len(hits) == 1
        moves.update(hits)
    assert len(moves) > 2


@pytest.mark.parametrize("turning", [True, False])
def test_affine_matches_torchvision(pictures, make_draw, turning):
    op = images.Affine(rotation=30) if turning else images.Affine(scale=(0.5, 0.5))
    degrees = torch.rad2deg(make_draw(6).uniform(low=-math.pi / 6, high=math.pi / 6)) if turning else torch.zeros(6)
    views = op(pictures, make_draw(6))
    for x, view, degree in zip(pictures, views, degrees, strict=True):
        scale = 1.0 if turning else 0.5
        expected = tv.affine(x, -float(degree), [0, 0], scale, [0, 0], v2.InterpolationMode.BILINEAR)
        assert (view - expected).abs().mean() < 2e-3


def test_jitter_equals_torchvision_in_every_order(pictures):
    functions = (tv.adjust_brightness, tv.adjust_contrast, tv.adjust_saturation)
    factors = torch.tensor([[1.3, 0.7, 1.5]]).expand(6, 3)
    orders = torch.tensor([[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]])
    views = images.ColorJitter.blend(pictures, orders, factors)
    for x, view, order in zip(pictures, views, orders.tolist(), strict=True):
        for kind in order:
            x = functions[kind](x, float(factors[0, kind]))
        assert torch.allclose(view, x, atol=2e-4)  # torchvision's luminance weights sum to 0.9999


def test_hue_equals_torchvision(pictures):
    turn = torch.tensor([-0.5, -0.2, 0.0, 0.05, 0.3, 0.5])
    for x, view, t in zip(pictures, images.shift_hue(pictures, turn), turn, strict=True):
        assert torch.allclose(view, tv.adjust_hue(x, float(t)), atol=1e-5)


def test_jitter_with_hue_first_or_last_and_probability(pictures, make_draw):
    same = pictures[:1].expand(400, -1, -1, -1)
    view = images.ColorJitter(0.4, 0.4, 0.4, 0.2, p=0.8)(same, make_draw(400))
    unchanged = torch.isclose(view, same, atol=1e-5).flatten(1).all(dim=1).float().mean()
    assert abs(float(unchanged) - 0.2) < 0.06
    only_hue = images.ColorJitter(hue=0.2)(same, make_draw(400))
    assert torch.allclose(only_hue.amax(1), same.amax(1), atol=1e-5)
    with pytest.raises(ValueError, match=r"hue=0\.7"):
        images.ColorJitter(hue=0.7)


def test_brightness_factor(make_draw):
    view = images.Brightness(0.6, 1.4)(torch.full((4000, 1, 2, 2), 0.5), make_draw(4000))
    factor = view[:, 0, 0, 0] / 0.5
    assert abs(float(factor.mean()) - 1.0) < 0.02
    assert abs(float(factor.std()) - 0.8 / math.sqrt(12)) < 0.01


def test_blur_equals_torchvision(pictures):
    sigma = torch.tensor([0.3, 0.5, 0.8, 1.0, 1.5, 2.0])
    for x, view, s in zip(pictures, images.blur(pictures, sigma, 3), sigma, strict=True):
        assert torch.allclose(view, tv.gaussian_blur(x, [7, 7], [float(s)] * 2), atol=1e-5)


def test_greyscale_and_solarize(pictures, make_draw):
    assert torch.allclose(images.Greyscale(1.0)(pictures, make_draw(6)), tv.rgb_to_grayscale(pictures, 3), atol=1e-5)
    assert torch.allclose(images.Solarize(1.0, 0.5)(pictures, make_draw(6)), tv.solarize(pictures, 0.5))


def test_cutout_hides_the_area_asked_for(make_draw):
    view = images.Cutout(0.5, fill=0.5)(torch.zeros(3000, 1, 32, 32), make_draw(3000))
    hidden = (view == 0.5).sum(dim=(1, 2, 3))
    assert hidden.max() == 16 * 16
    assert hidden.min() < 12 * 12  # the centre may lie at the border
    assert abs(float((view == 0.5).float().mean()) - (14 / 32) ** 2) < 0.01  # the side inside is 14 on average


# What torchvision does to 8-bit pictures with magnitude m of the strong view.
REFERENCE = {
    "autocontrast": lambda x, m: tv.autocontrast(x),
    "brightness": lambda x, m: tv.adjust_brightness(x, 0.05 + 0.09 * m),
    "colour": lambda x, m: tv.adjust_saturation(x, 0.05 + 0.09 * m),
    "contrast": lambda x, m: tv.adjust_contrast(x, 0.05 + 0.09 * m),
    "equalize": lambda x, m: tv.equalize(x),
    "identity": lambda x, m: x,
    "posterize": lambda x, m: tv.posterize(x, 4 + int(0.4 * m)),
    "sharpness": lambda x, m: tv.adjust_sharpness(x, 0.05 + 0.09 * m),
    "solarize": lambda x, m: tv.solarize(x, 256 - int(25.6 * m)),
    "rotate": lambda x, m: tv.rotate(x, -3 * m, v2.InterpolationMode.BILINEAR),
    "translate_x": lambda x, m: tv.affine(x, 0, [-int(3 * m * 20 / 100), 0], 1, [0, 0]),
    "translate_y": lambda x, m: tv.affine(x, 0, [0, -int(3 * m * 16 / 100)], 1, [0, 0]),
}


@pytest.mark.parametrize("name", REFERENCE)
def test_randaugment_operations_equal_torchvision(pictures, name):
    magnitude = torch.tensor([1, 3, 5, 6, 8, 9])

    def is_op(k: str) -> torch.Tensor:
        return torch.full((6,), k == name)

    view = images.RandAugment.colours(pictures, is_op, magnitude)
    view = images.warp(view, *images.RandAugment.geometry(is_op, magnitude, 16, 20))
    for x, y, m in zip(pictures, view, magnitude.tolist(), strict=True):
        expected = REFERENCE[name]((x * 255).round().to(torch.uint8), m).float() / 255
        error = (y - expected).abs() * 255  # of 8-bit levels: torchvision rounds at every step
        assert error.mean() < 2.5 if name == "rotate" else error.max() < 2.01


def test_randaugment_draws_every_operation_half_of_the_time(make_draw):
    draw, op = make_draw(4000), images.RandAugment(n=1)
    chosen = draw.integers(14, 1)[:, 0]
    assert chosen.bincount(minlength=14).min() > 4000 / 14 * 0.8
    x = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(0)).expand(1000, -1, -1, -1)
    same = (images.RandAugment(n=1, cutout=0)(x, make_draw(1000)) - x).abs().amax(dim=(1, 2, 3)) < 1e-4
    assert 0.5 < float(same.float().mean()) < 0.75  # half not applied, then identity and moves of less than a pixel
    assert len(op.operations) == 14
