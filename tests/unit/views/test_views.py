"""What holds for every operation of every modality: shape, range, independence of the batch, padding."""

from __future__ import annotations

import pytest
import torch

from ssl_suite.functional.random import Draw
from ssl_suite.views import corruptions, images, series, speech
from ssl_suite.views.corruptions import Corruption

LENGTHS = torch.tensor([100, 80, 55, 31, 12, 100])

IMAGES = [
    images.Affine(20, 0.1, (0.8, 1.2), 10, 0.5), images.RandomResizedCrop(), images.Shift(flip=0.5),
    images.ColorJitter(0.4, 0.4, 0.4, 0.1, 0.8), images.Greyscale(0.5), images.GaussianBlur(5), images.Solarize(0.5),
    images.Brightness(), images.GaussianNoise(), images.Cutout(), images.RandAugment(),
    *(Corruption(name, 3) for name in corruptions.corruption_names("images")),
]
SPEECH = [
    speech.Gain(), speech.Noise(), speech.Noise(colour=1.0), speech.TimeShift(), speech.Speed(0.7, 1.4),
    speech.Reverb(rate=8000), speech.TimeMask(0.3), speech.Window(), speech.FrequencyMask(0.3), speech.Polarity(),
    *(Corruption(name, 3, "speech", rate=8000) for name in corruptions.corruption_names("speech")),
]
SERIES = [
    series.Jitter(), series.Scaling(), series.MagnitudeWarp(), series.TimeWarp(), series.Permutation(),
    series.TimeMask(0.3), series.Crop(), series.TimeShift(0.3), series.ChannelDrop(0.5),
    *(Corruption(name, 3, "series") for name in corruptions.corruption_names("series")),
]
CASES = [("pictures", op) for op in IMAGES] + [("waves", op) for op in SPEECH] + [("series", op) for op in SERIES]
NAMES = [f"{kind}-{getattr(op, 'name', '')}{type(op).__name__}-{i}" for i, (kind, op) in enumerate(CASES)]
SAME_FOR_ALL = {"clipping", "telephone", "gain", "brightness", "contrast", "pixelate", "jpeg_compression", "saturate",
                "defocus_blur", "gaussian_blur", "zoom_blur", "resample"}


def samples(request: pytest.FixtureRequest, kind: str) -> tuple[torch.Tensor, torch.Tensor | None]:
    x = request.getfixturevalue(kind)
    if kind == "pictures":
        return x, None
    length = LENGTHS * x.shape[-1] // 100
    return series.keep_valid(x, length), length


@pytest.mark.parametrize(("kind", "op"), CASES, ids=NAMES)
def test_view_depends_on_the_sample_alone(request, make_draw, kind, op):
    x, length = samples(request, kind)
    before = x.clone()
    index = torch.tensor([7, 1000, 3, 12, 99, 5])
    whole = op(x, make_draw(index), length)
    assert torch.equal(x, before), "the operation changed its input"
    assert whole.shape == x.shape
    assert whole.dtype == torch.float32
    assert whole.isfinite().all()
    assert torch.equal(whole, op(x, make_draw(index), length)), "not reproducible"
    pick = torch.tensor([4, 1])
    part = op(x[pick], make_draw(index[pick]), None if length is None else length[pick])
    assert torch.allclose(part, whole[pick], atol=2e-5 * max(1.0, float(x.abs().max())))
    if kind == "pictures":
        assert whole.min() >= 0
        assert whole.max() <= 1
    else:
        assert torch.equal(whole, series.keep_valid(whole, length)), "something lies in the padding"


@pytest.mark.parametrize(("kind", "op"), CASES, ids=NAMES)
def test_samples_epochs_and_seeds_differ(request, make_draw, kind, op):
    if getattr(op, "name", None) in SAME_FOR_ALL and (kind, op.name) != ("series", "gain"):
        pytest.skip("has no random part")
    x, _ = samples(request, kind)
    n = 24
    same = x[:1].expand(n, *x.shape[1:]).contiguous()
    length = None if kind == "pictures" else torch.full((n,), x.shape[-1])
    views = op(same, make_draw(n), length)
    assert len(views.flatten(1).unique(dim=0)) > 1, "all samples of the batch got the same view"
    assert not torch.equal(views, op(same, make_draw(n, epoch=1), length))
    assert not torch.equal(views, op(same, make_draw(n, seed=1), length))


@pytest.mark.parametrize(("kind", "op"), [c for c in CASES if c[0] != "pictures"],
                         ids=[n for n in NAMES if not n.startswith("pictures")])
def test_padding_does_not_change_the_view(request, make_draw, kind, op):
    x, length = samples(request, kind)
    if isinstance(op, speech.FrequencyMask) or getattr(op, "name", None) == "telephone":
        pytest.skip("the bins of its Fourier transform belong to the padded length")
    longer = torch.nn.functional.pad(x, (0, 37))
    short, long = op(x, make_draw(6), length), op(longer, make_draw(6), length)
    assert torch.allclose(short, long[..., : x.shape[-1]], atol=2e-5 * max(1.0, float(x.abs().max())))


@pytest.mark.parametrize(("kind", "op"), CASES, ids=NAMES)
def test_autocast_does_not_change_the_view(request, make_draw, kind, op):
    x, length = samples(request, kind)
    expected = op(x, make_draw(6), length)
    with torch.autocast("cpu", torch.bfloat16):
        view = op(x, make_draw(6), length)
    assert view.dtype == torch.float32
    assert torch.allclose(view, expected, atol=1e-5)


@pytest.mark.parametrize("op", IMAGES, ids=NAMES[: len(IMAGES)])
def test_one_channel_and_odd_sizes(make_draw, op):
    x = torch.rand(3, 1, 9, 7, generator=torch.Generator().manual_seed(0))
    y = op(x, make_draw(3), None)
    assert y.shape == x.shape
    assert y.isfinite().all()
    if isinstance(op, images.Greyscale) or getattr(op, "name", None) == "saturate":
        assert torch.allclose(y, x)


def test_control_a_draw_in_sequence_would_fail(pictures, make_draw):
    """The check above is not vacuous: noise from a generator depends on the place in the batch."""

    def noisy(x: torch.Tensor, draw: Draw) -> torch.Tensor:
        return x + torch.randn(x.shape, generator=torch.Generator().manual_seed(0))

    pick = torch.tensor([4, 1])
    assert not torch.allclose(noisy(pictures[pick], make_draw(2)), noisy(pictures, make_draw(6))[pick])
