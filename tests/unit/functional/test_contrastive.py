"""InfoNCE and NT-Xent."""

from __future__ import annotations

import math

import pytest
import torch
from lightly.loss import NTXentLoss

from ssl_suite.functional.contrastive import info_nce, nt_xent


def test_value_and_gradient_equal_the_formula() -> None:
    torch.manual_seed(0)
    q, k = torch.randn(2, 5, 8).requires_grad_().unbind()
    total = torch.zeros(())
    for i in range(5):
        similar = [(q[i] @ k[j] / q[i].norm() / k[j].norm() / 0.2).exp() for j in range(5)]
        total = total - (similar[i] / sum(similar)).log() / 5
    ours = info_nce(q, k, 0.2)
    torch.testing.assert_close(ours, total)
    for a, b in zip(torch.autograd.grad(ours, (q, k), retain_graph=True), torch.autograd.grad(total, (q, k)), strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-4)


def test_length_plays_no_part_and_equal_keys_tell_nothing() -> None:
    torch.manual_seed(0)
    q, k = torch.randn(2, 5, 8)
    torch.testing.assert_close(info_nce(3 * q, 0.1 * k, 0.2), info_nce(q, k, 0.2))
    assert info_nce(q, k[:1].expand(5, -1), 0.2).item() == pytest.approx(math.log(5), rel=1e-5)


def test_autocast_does_not_reach_it() -> None:
    q, k = torch.randn(2, 5, 8)
    with torch.autocast("cpu", torch.bfloat16):
        inside = info_nce(q, k, 0.2)
    assert torch.equal(inside, info_nce(q, k, 0.2))


@pytest.mark.parametrize("temperature", [0.1, 0.5])
def test_nt_xent_equals_lightlys(temperature: float) -> None:
    torch.manual_seed(0)
    z0, z1 = torch.randn(2, 7, 8).requires_grad_().unbind()
    ours, theirs = nt_xent(z0, z1, temperature), NTXentLoss(temperature)(z0, z1)
    torch.testing.assert_close(ours, theirs)
    for a, b in zip(torch.autograd.grad(ours, (z0, z1), retain_graph=True), torch.autograd.grad(theirs, (z0, z1)), strict=True):
        torch.testing.assert_close(a, b, atol=1e-7, rtol=1e-4)
    with pytest.raises(ValueError, match="temperature must be above 0, got 0"):
        nt_xent(z0, z1, 0.0)
