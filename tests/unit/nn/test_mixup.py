"""Mixup: shares of the Beta distribution, partners, padding, and draws that follow the sample."""

from __future__ import annotations

import pytest
import torch
from scipy.stats import beta, kstest

from ssl_suite.functional.random import Draw, sample_keys
from ssl_suite.nn.mixup import Mixup


def draw(n: int, epoch: int = 0, seed: int = 0) -> Draw:
    return Draw(sample_keys(seed, torch.full((n,), epoch), torch.arange(n), 100))


@pytest.mark.parametrize("alpha", [0.3, 0.5, 0.75, 1.0, 4.0])  # below, float32 has no room next to 1
def test_shares_are_the_larger_halves_of_a_beta_distribution(alpha):
    shares = Mixup(alpha).draw_shares(draw(4000)).double().numpy()
    assert shares.min() >= 0.5
    assert kstest(shares, lambda s: 2.0 * beta.cdf(s, alpha, alpha) - 1.0).pvalue > 0.01
    assert kstest(shares, lambda s: 2.0 * beta.cdf(s, 1.5 * alpha, 1.5 * alpha) - 1.0).pvalue < 1e-6  # the control


def test_samples_and_targets_share_partner_and_share():
    x = torch.randn(16, 2, 5)
    mixed, target, length = Mixup(0.75)(x, torch.eye(16), None, draw(16))
    assert length is None
    torch.testing.assert_close(mixed, torch.einsum("ij,jct->ict", target, x))
    assert (target.diagonal() >= 0.5).all()
    torch.testing.assert_close(target.sum(1), torch.ones(16))
    assert ((target > 0).sum(0) == 2).float().mean() > 0.5  # each row is the partner of one row


def test_padding_stays_silent_and_a_mixed_row_is_as_long_as_the_longer():
    length = torch.tensor([3, 8, 5, 1, 6, 8])
    x = torch.randn(6, 8) * (torch.arange(8) < length[:, None])
    mixed, target, longer = Mixup(0.75)(x, torch.eye(6), length, draw(6))
    for row, weights, steps in zip(mixed, target, longer, strict=True):
        assert steps == length[weights > 0].max()
        assert row[steps:].abs().sum() == 0
    assert (longer > length).any()


def test_the_same_epoch_repeats_and_another_does_not():
    x, mix = torch.randn(8, 4), Mixup(0.75)
    once, again, later = (mix(x, torch.eye(8), None, draw(8, epoch))[1] for epoch in (0, 0, 1))
    assert torch.equal(once, again)
    assert not torch.equal(once, later)


def test_the_table_is_no_part_of_the_state():
    assert not Mixup(0.5).state_dict()


@pytest.mark.parametrize("alpha", [0.0, -1.0])
def test_bad_parameter(alpha):
    with pytest.raises(ValueError, match=r"model\.mixup=.* above 0"):
        Mixup(alpha)
