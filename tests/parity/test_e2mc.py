from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor

from ssl_suite.methods.pretraining.e2mc import E2MC, decorrelation, marginal_entropy
from ssl_suite.methods.pretraining.vicreg import VICReg
from ssl_suite.optim import Constant
from tests.parity.test_vicreg import written_out
from tests.parity.tiny import Tiny, gradients, pictures, views

ADAM = {"optimizer": partial(torch.optim.AdamW, lr=0.01), "schedule": Constant()}
SMALL = {"hidden_dim": 32, "projection_dim": 8}


def make(kind: type[VICReg] = E2MC, **kwargs) -> VICReg:
    torch.manual_seed(0)
    return kind(Tiny(), views(), **SMALL, **ADAM, **kwargs)


def spacings(u: Tensor, eps: float = 1e-7) -> Tensor:
    """The estimate written out: one dimension and one spacing after the other."""
    n = len(u)
    m = round(n**0.5)
    each = []
    for column in u.T:
        ordered = column.sort().values
        each.append(sum(torch.log((n + 1) / m * (ordered[i + m] - ordered[i]) + eps) for i in range(n - m)) / (n - m))
    return torch.stack(each).mean()


@pytest.mark.parametrize(("stretch", "entropy"), [(1.0, 0.0), (0.5, -0.6931)])
def test_entropy_of_uniform_samples(stretch: float, entropy: float) -> None:
    u = torch.rand(512, 64, generator=torch.Generator().manual_seed(0)) * stretch
    assert marginal_entropy(u) == pytest.approx(entropy, abs=0.05)


def test_repeated_values_keep_the_gradient_finite() -> None:
    u = torch.rand(64, 4).round(decimals=1).requires_grad_()
    (gradient,) = torch.autograd.grad(marginal_entropy(u), u)
    assert gradient.isfinite().all()


def test_step_equals_the_formula() -> None:
    method, batch = make(entropy=3.0, squashed_covariance=2.0), pictures(12, labels=False)
    x0, x1 = method.views(batch, "crop", "crop")
    z0, z1 = method.projector(method.backbone(x0)), method.projector(method.backbone(x1))
    squashed = [1 / (1 + (-z).exp()) for z in (z0, z1)]
    crossed = sum(sum(c[i, j] ** 2 for i in range(8) for j in range(8) if i != j) / 8 for c in (torch.cov(u.T) for u in squashed))
    expected = written_out(z0, z1, 25.0, 25.0, 1.0) - 3.0 * (spacings(squashed[0]) + spacings(squashed[1])) / 2 + 2.0 * crossed
    expected.backward()
    theirs = gradients(method)
    method.zero_grad()
    out = method.step(batch)
    out.loss.backward()
    torch.testing.assert_close(out.loss, expected)
    torch.testing.assert_close(gradients(method), theirs, atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(sum(map(decorrelation, squashed)), crossed)


def test_without_its_terms_it_is_vicreg() -> None:
    batch = pictures(8, labels=False)
    torch.testing.assert_close(make(entropy=0.0, squashed_covariance=0.0).step(batch).loss, make(VICReg).step(batch).loss)
