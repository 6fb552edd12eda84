"""A bag of textons tells textures apart, repeats itself and says what it lacks."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from ssl_suite.nn.textons import TextonRegressor, sample_patches, texton_descriptor


def grating(period: float, seed: int = 0) -> Tensor:
    """Stripes with noise, (1, 24, 32)."""
    noise = 0.02 * torch.randn(1, 24, 32, generator=torch.Generator().manual_seed(seed))
    return 0.5 + 0.4 * torch.sin(torch.arange(32.0) * 2 * math.pi / period).expand(1, 24, 32) + noise


def made(**options: Any) -> TextonRegressor:
    learner = TextonRegressor(**{"channels": 1, "textons": 8, "patches": 80, **options})
    learner.calibrate(torch.stack([grating(p, s) for s, p in enumerate((4, 6, 8, 12, 16))]))
    return learner


def test_descriptor_is_shares_and_their_entropy() -> None:
    textons = torch.tensor([[0.0, 0.0], [1.0, 1.0], [9.0, 9.0]])
    patches = torch.tensor([[0.1, 0.0], [0.0, 0.2], [0.9, 1.0], [1.0, 1.2]])
    assert texton_descriptor(patches, textons).tolist() == pytest.approx([0.5, 0.5, 0.0, math.log(2)])
    assert texton_descriptor(patches[:2], textons).tolist() == pytest.approx([1.0, 0.0, 0.0, 0.0])


def test_patches_are_cut_from_the_picture() -> None:
    picture = torch.arange(2 * 6 * 7.0).view(2, 6, 7)
    patches = sample_patches(picture, 40, 3, (0, 1)).view(40, 2, 3, 3)
    everywhere = [picture[:, r:r + 3, c:c + 3] for r in range(4) for c in range(5)]
    assert all(any(torch.equal(patch, window) for window in everywhere) for patch in patches)
    assert len({tuple(p.flatten().tolist()) for p in patches}) > 10
    assert torch.equal(patches.flatten(1), sample_patches(picture, 40, 3, (0, 1)))
    assert not torch.equal(patches.flatten(1), sample_patches(picture, 40, 3, (0, 2)))


@pytest.mark.parametrize("regressor", ["knn", "ridge"])
def test_it_reads_a_period_off_the_texture(regressor: Any) -> None:
    learner, periods = made(regressor=regressor), [4 + 12 * n / 59 for n in range(60)]
    h = torch.stack([learner.describe(grating(p, 100 + n), n) for n, p in enumerate(periods)])
    assert h.shape == (60, learner.width)
    assert h[:, :-1].sum(1).allclose(torch.ones(60))
    truth = torch.tensor(periods)
    learner.fit(h[::2], truth[::2])
    assert (learner(h[1::2]) - truth[1::2]).abs().mean() < 0.5 * (truth - truth.mean()).abs().mean()


def test_fewer_frames_than_neighbours() -> None:
    learner = made()
    h = torch.stack([learner.describe(grating(p), 0) for p in (4, 16)])
    learner.fit(h, torch.tensor([1.0, 3.0]))
    assert learner(h).tolist() == pytest.approx([2.0, 2.0])


def test_before_and_after() -> None:
    learner = made()
    h = learner.describe(grating(5), 0)[None]
    assert learner(h).isnan().all()
    learner.fit(h, torch.tensor([2.0]))
    assert learner(h).tolist() == [2.0]
    learner.fit(h[:0], torch.zeros(0))
    assert learner(h).isnan().all()
    with pytest.raises(RuntimeError, match="calibrate"):
        TextonRegressor(channels=1).describe(grating(5), 0)


def test_a_picture_with_nan_gives_no_estimate() -> None:
    learner, bad = made(), grating(5)
    h = learner.describe(bad, 0)
    learner.fit(h[None], torch.tensor([2.0]))
    bad[0, 3, 3] = torch.nan
    nothing = torch.full_like(bad, torch.nan)
    assert learner.describe(nothing, 0).isnan().all()
    assert learner(torch.stack([h, learner.describe(nothing, 0)])).isnan().tolist() == [False, True]


@pytest.mark.parametrize(("options", "message"), [
    ({"regressor": "forest"}, "regressor='forest'"), ({"textons": 1}, "textons"), ({"patches": 0}, "patches"),
    ({"penalty": 0.0}, "penalty")])
def test_bad_settings_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TextonRegressor(**options)


def test_bad_pictures_are_named() -> None:
    learner = made()
    for shape in ((3, 24, 32), (24, 32), (1, 4, 32)):
        with pytest.raises(ValueError, match="channels=1"):
            learner.describe(torch.zeros(shape), 0)
    with pytest.raises(ValueError, match="more pictures"):
        TextonRegressor(channels=1, textons=20, patches=10).calibrate(torch.zeros(1, 1, 9, 9))
