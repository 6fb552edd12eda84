"""Series operations against closed forms, channels kept together."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.interpolate import CubicSpline

from ssl_suite.views import series

LENGTH = torch.tensor([100, 80, 55, 31, 12, 100])


def numbered(n: int = 6, size: int = 100) -> torch.Tensor:
    """Channels that say which channel and step they are: 1000 c + t + 1."""
    return (1000 * torch.arange(3)[:, None] + torch.arange(size) + 1.0).expand(n, 3, size).contiguous()


MOVES = [series.Permutation(6), series.TimeShift(0.3), series.Crop((0.5, 0.9)), series.TimeWarp()]


@pytest.mark.parametrize("op", MOVES)
def test_channels_move_together_and_stay_apart(make_draw, op):
    x = series.keep_valid(numbered(), LENGTH)
    y = op(x, make_draw(6), LENGTH)
    for row, n in zip(y, LENGTH.tolist(), strict=True):
        assert torch.allclose(row[1, :n] - row[0, :n], torch.full((n,), 1000.0), atol=1e-2)
        assert torch.allclose(row[2, :n] - row[0, :n], torch.full((n,), 2000.0), atol=1e-2)


def test_permutation_is_one_of_few_segments(make_draw):
    x = series.keep_valid(numbered(60), LENGTH.repeat(10))
    y = series.Permutation(4)(x, make_draw(60), LENGTH.repeat(10))
    cuts = set()
    for row, n in zip(y, LENGTH.repeat(10).tolist(), strict=True):
        assert sorted(row[0, :n].tolist()) == [t + 1.0 for t in range(n)]
        cuts.add(int((row[0, 1:n] - row[0, : n - 1] != 1).sum()))
    assert cuts == {0, 1, 2, 3}


def test_spline_equals_scipy():
    values = torch.randn(2, 3, 6, generator=torch.Generator().manual_seed(0))
    at = torch.linspace(0, 1, 41).expand(2, 41)
    curve = series.smooth_curve(values, at)
    expected = CubicSpline(np.linspace(0, 1, 6), values.numpy(), axis=-1, bc_type="natural")(at[0].numpy())
    assert np.allclose(curve.numpy(), expected, atol=1e-5)


def test_jitter_is_relative_to_each_channel(series, make_draw):
    from ssl_suite.views.series import Jitter, moments

    x = series.repeat(50, 1, 1)
    noise = Jitter(0.2)(x, make_draw(300), None) - x
    relative = (noise / moments(x, None)[1]).std(dim=(0, 2))
    assert torch.allclose(relative, torch.full((3,), 0.2), atol=0.01)


def test_scaling_and_magnitude_warp(make_draw):
    x = torch.ones(2000, 2, 20)
    factor = series.Scaling(0.3, mean=2.0)(x, make_draw(2000), None)
    assert torch.equal(factor, factor[..., :1].expand_as(factor))
    assert abs(float(factor.mean()) - 2.0) < 0.02
    assert abs(float(factor[..., 0].std()) - 0.3) < 0.02
    curve = series.MagnitudeWarp(3, 0.2)(x, make_draw(2000), None)
    assert abs(float(curve.mean()) - 1.0) < 0.01
    assert abs(float(curve[..., 0].std()) - 0.2) < 0.01
    assert (curve[..., 0] - curve[..., -1]).abs().mean() > 0.1


def test_time_warp_keeps_ends_and_order(make_draw):
    x = series.keep_valid(numbered(), LENGTH)
    y = series.TimeWarp(4, 0.5)(x, make_draw(6), LENGTH)
    for row, n in zip(y[:, 0], LENGTH.tolist(), strict=True):
        assert abs(float(row[0]) - 1) < 1e-3
        assert abs(float(row[n - 1]) - n) < 1e-2
        assert (row[1:n] >= row[: n - 1]).all()


def test_crop_and_shift_ranges(make_draw):
    x = numbered(500)
    y = series.Crop((0.5, 0.5))(x, make_draw(500), None)[:, 0]
    assert torch.allclose(y[:, -1] - y[:, 0], torch.full((500,), 49.5), atol=1e-3)
    assert y[:, 0].min() < 4
    assert y[:, -1].max() > 97
    shifted = series.TimeShift(0.25)(x, make_draw(500), None)[:, 0]
    assert torch.equal(shifted.sort(dim=1).values, x[:, 0])
    assert set(((shifted[:, 0] - 1 + 50) % 100 - 50).abs().int().tolist()) >= {0, 5, 20}


def test_hidden_values_are_the_mean_and_a_channel_stays(make_draw):
    x = numbered(300) - 50.5
    masked = series.TimeMask(0.2, 1)(x, make_draw(300), None)
    hidden = (masked - x).abs() > 1e-3
    assert abs(float(hidden.float().mean()) - 0.1) < 0.015
    assert torch.equal(hidden[:, 0], hidden[:, 2])
    dropped = series.ChannelDrop(0.9)(x, make_draw(300), None)
    constant = dropped.std(dim=-1) < 1e-3
    assert (constant.sum(1) <= 2).all()
    assert (constant.sum(1) == 2).any()
