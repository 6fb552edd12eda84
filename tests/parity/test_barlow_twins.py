"""Barlow Twins against equations 1 and 2 of the paper, written out."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ssl_suite.methods.pretraining.barlow_twins import BarlowTwins
from tests.parity.tiny import Tiny, gradients, pictures, views


def make(**kwargs) -> BarlowTwins:
    torch.manual_seed(0)
    return BarlowTwins(Tiny(), views(), hidden_dim=32, projection_dim=8, **kwargs)


def written_out(z0: Tensor, z1: Tensor, redundancy: float) -> Tensor:
    """Equations 1 and 2; the standardisation has BatchNorm's epsilon, as in the official code."""
    z0, z1 = ((z - z.mean(0)) / (z.var(0, unbiased=False) + 1e-5).sqrt() for z in (z0, z1))
    d, total = z0.shape[1], torch.zeros(())
    for i in range(d):
        for j in range(d):
            c = (z0[:, i] * z1[:, j]).mean()
            total = total + ((1 - c) ** 2 if i == j else redundancy * c ** 2)
    return total


@pytest.mark.parametrize("redundancy", [0.0, 0.0051, 1.0])
def test_value_and_gradient_equal_the_equations(redundancy):
    method = make(redundancy=redundancy)
    z0 = (torch.randn(12, 8) * torch.linspace(0.3, 2.0, 8)).requires_grad_()
    z1 = (z0.detach() + 0.7 * torch.randn(12, 8)).requires_grad_()
    ours, theirs = method.criterion(z0, z1), written_out(z0, z1, redundancy)
    torch.testing.assert_close(ours, theirs)
    for a, b in zip(torch.autograd.grad(ours, (z0, z1)), torch.autograd.grad(theirs, (z0, z1)), strict=True):
        assert b.abs().max() > 1e-4
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-4)


def test_step_uses_two_different_views_and_every_parameter():
    method, batch = make(), pictures(8, labels=False)
    out = method.step(batch)
    out.loss.backward()
    assert set(gradients(method)) == {name for name, _ in method.named_parameters()}
    z0, z1 = (method.projector(method.backbone(x)) for x in method.views(batch, "crop", "crop"))
    torch.testing.assert_close(out.loss, written_out(z0, z1, 0.0051))

