"""Losses that tell one's own from others."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from lightly.loss import NTXentLoss
from torch import Tensor

from ssl_suite.functional.contrastive import nt_xent, supcon_loss, swapped_info_nce
from ssl_suite.methods.pretraining.vicreg import vicreg_loss


def test_value_and_gradient_equal_the_formula() -> None:
    torch.manual_seed(0)
    given = torch.randn(4, 5, 8).requires_grad_().unbind()
    total = torch.zeros(())
    for q, k in ((given[0], given[3]), (given[1], given[2])):
        for i in range(5):
            similar = [(q[i] @ k[j] / q[i].norm() / k[j].norm() / 0.2).exp() for j in range(5)]
            total = total - (similar[i] / sum(similar)).log() / 5
    ours = swapped_info_nce(*given, 0.2)
    torch.testing.assert_close(ours, total)
    for a, b in zip(torch.autograd.grad(ours, given, retain_graph=True), torch.autograd.grad(total, given), strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-4)


def test_length_plays_no_part_and_equal_keys_tell_nothing() -> None:
    torch.manual_seed(0)
    q, k = torch.randn(2, 5, 8)
    torch.testing.assert_close(swapped_info_nce(3 * q, q, 0.1 * k, k, 0.2), swapped_info_nce(q, q, k, k, 0.2))
    same = k[:1].expand(5, -1)
    assert swapped_info_nce(q, q, same, same, 0.2).item() == pytest.approx(2.0 * math.log(5), rel=1e-5)


LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "info_nce": lambda a, b: swapped_info_nce(a, b, a, b, 0.2), "nt_xent": lambda a, b: nt_xent(a, b, 0.2),
    "supcon": lambda a, b: supcon_loss(torch.cat([a, b]), torch.arange(64).repeat(2), 0.2),
    "vicreg": lambda a, b: vicreg_loss(a, b, 25.0, 25.0, 1.0)}


@pytest.mark.parametrize("name", LOSSES)
def test_autocast_does_not_reach_it(name: str) -> None:
    a, b = torch.randn(2, 64, 8, generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", torch.bfloat16):
        inside = LOSSES[name](a, b)
    assert inside.dtype == torch.float32
    assert torch.equal(inside, LOSSES[name](a, b))


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
