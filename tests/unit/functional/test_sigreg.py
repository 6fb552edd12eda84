"""How SIGReg tells a Gaussian from what is none."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ssl_suite.functional.sigreg import directions, sigreg

CPU = torch.device("cpu")


def test_directions_are_unit_vectors_of_seed_and_step() -> None:
    one = directions(500, 8, 3, CPU)
    torch.testing.assert_close(one.norm(dim=1), torch.ones(500))
    assert torch.equal(one, directions(500, 8, 3, CPU))
    assert not torch.equal(one, directions(500, 8, 4, CPU))
    assert not torch.equal(one, directions(500, 8, 3, CPU, seed=1))
    assert len(one.unique(dim=0)) == 500
    assert one.mean(0).abs().max() < 0.1
    torch.testing.assert_close(one.T @ one / 500, torch.eye(8) / 8, atol=0.03, rtol=0)


@pytest.mark.parametrize("n", [100, 1000, 10000])
def test_a_normal_sample_keeps_it_of_order_one_and_a_constant_makes_it_grow(n: int) -> None:
    torch.manual_seed(0)
    along = directions(64, 4, 0, CPU)
    assert 0.3 < sigreg(torch.randn(n, 4), along) < 3.0
    torch.testing.assert_close(sigreg(torch.ones(n, 4), along) / n, sigreg(torch.ones(10, 4), along) / 10)


@pytest.mark.parametrize("other", [lambda z: 2 * z, lambda z: z + 1, lambda z: z.sign(), lambda z: z[:, :1].expand_as(z)])
def test_what_is_no_isotropic_gaussian_is_told(other) -> None:
    torch.manual_seed(0)
    z, along = torch.randn(2000, 4), directions(64, 4, 0, CPU)
    assert sigreg(other(z), along) > 5 * sigreg(z, along)


def test_views_have_statistics_of_their_own() -> None:
    z, along = torch.randn(3, 50, 4), directions(16, 4, 0, CPU)
    torch.testing.assert_close(sigreg(z, along), torch.stack([sigreg(view, along) for view in z]).mean())
    assert not torch.isclose(sigreg(z, along), sigreg(z.flatten(0, 1), along))


def test_descent_makes_a_sample_gaussian() -> None:
    torch.manual_seed(0)
    z = (0.5 + torch.rand(128, 2)).requires_grad_()
    optimizer = torch.optim.Adam([z], lr=0.05)
    for step in range(150):
        optimizer.zero_grad()
        sigreg(z, directions(32, 2, step, CPU)).backward()
        optimizer.step()
    sample: Tensor = z.detach()
    torch.testing.assert_close(sample.mean(0), torch.zeros(2), atol=0.1, rtol=0)
    torch.testing.assert_close(sample.T.cov(), torch.eye(2), atol=0.2, rtol=0)


def test_autocast_does_not_reach_it() -> None:
    z, along = torch.randn(50, 4), directions(16, 4, 0, CPU)
    with torch.autocast("cpu", torch.bfloat16):
        inside = sigreg(z, along)
    assert torch.equal(inside, sigreg(z, along))
