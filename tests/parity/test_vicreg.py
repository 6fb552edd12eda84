from __future__ import annotations

import pytest
import torch
from lightly.loss import VICRegLoss
from torch import Tensor

from ssl_suite.methods.pretraining.vicreg import VICReg
from tests.parity.tiny import Tiny, gradients, pictures, views


def make(**kwargs) -> VICReg:
    torch.manual_seed(0)
    return VICReg(Tiny(), views(), hidden_dim=32, projection_dim=8, **kwargs)


def written_out(z0: Tensor, z1: Tensor, invariance: float, variance: float, covariance: float) -> Tensor:
    """Equations 1 to 6, with the official code's means over dimensions and branches; see the method's deviations."""
    n, d = z0.shape
    s = sum(((z0[i] - z1[i]) ** 2).sum() for i in range(n)) / n / d
    v, c = 0.0, 0.0
    for z in (z0, z1):
        centred = z - z.mean(0)
        cov = centred.T @ centred / (n - 1)
        v = v + sum((1.0 - (cov[j, j] + 1e-4).sqrt()).clamp_min(0.0) for j in range(d)) / d
        c = c + sum(cov[i, j] ** 2 for i in range(d) for j in range(d) if i != j) / d
    return invariance * s + variance * v / 2 + covariance * c


@pytest.mark.parametrize("weights", [(25.0, 25.0, 1.0), (1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)])
def test_value_and_gradient_equal_the_formula(weights):
    method = make(invariance=weights[0], variance=weights[1], covariance=weights[2])
    z0 = (torch.randn(6, 8) * torch.linspace(0.3, 2.0, 8)).requires_grad_()  # spreads below and above 1
    z1 = (z0.detach() + 0.2 * torch.randn(6, 8)).requires_grad_()
    ours = torch.autograd.grad(method.criterion(z0, z1), (z0, z1))
    theirs = torch.autograd.grad(written_out(z0, z1, *weights), (z0, z1))
    torch.testing.assert_close(method.criterion(z0, z1), written_out(z0, z1, *weights))
    for a, b in zip(ours, theirs, strict=True):
        assert b.abs().max() > 1e-4
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-4)
    torch.testing.assert_close(method.criterion(z0, z1), VICRegLoss(*weights)(z0, z1))


def test_step_uses_two_different_views_and_every_parameter():
    method, batch = make(), pictures(8, labels=False)
    out = method.step(batch)
    out.loss.backward()
    assert set(gradients(method)) == {name for name, _ in method.named_parameters()}
    x0, x1 = method.views(batch, "crop", "crop")
    z0, z1 = method.projector(method.backbone(x0)), method.projector(method.backbone(x1))
    torch.testing.assert_close(out.loss, written_out(z0, z1, 25.0, 25.0, 1.0))
    torch.testing.assert_close(out.features, method.backbone(x0).detach())
    assert not torch.allclose(z0, z1)


def test_collapse_is_what_the_variance_term_punishes():
    method = make()
    same = torch.ones(8, 8)
    assert method.criterion(same, same) == pytest.approx(25.0 * (1 - 0.01), rel=1e-4)


def test_labels_are_not_used():
    assert torch.equal(make().step(pictures(8)).loss, make().step(pictures(8, labels=False)).loss)
