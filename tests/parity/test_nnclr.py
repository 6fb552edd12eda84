"""NNCLR against the algorithm of the paper's appendix, written out."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor

from ssl_suite.methods.pretraining.nnclr import NNCLR, nearest
from tests.parity.tiny import Tiny, gradients, pictures, views


def make(**kwargs) -> NNCLR:
    torch.manual_seed(0)
    return NNCLR(Tiny(), views(), queue_size=20, hidden_dim=32, projection_dim=8, predictor_dim=16, **kwargs)


def unit(x: Tensor) -> Tensor:
    return x / x.norm(dim=1, keepdim=True)


def friend(z: Tensor, support: Tensor) -> Tensor:
    """Equation 2: the member of the support set at the least distance, for each row."""
    return torch.stack([min(support, key=lambda q, row=row: float((row - q).norm())) for row in unit(z.detach())])


def contrast(neighbour: Tensor, p: Tensor, temperature: float) -> Tensor:
    """Equation 3."""
    similar = torch.exp(unit(neighbour) @ unit(p).T / temperature)
    return -torch.log(similar.diagonal() / similar.sum(1)).mean()


def test_value_gradient_and_support_set_equal_the_algorithm():
    method, batch = make(temperature=0.2), pictures(7, labels=False)
    twin = copy.deepcopy(method)
    out = method.step(batch)
    out.loss.backward()
    z0, z1 = (twin.projector(twin.backbone(x)) for x in twin.views(batch, "crop", "crop"))
    p0, p1 = twin.predictor(z0), twin.predictor(z1)
    support = twin.queue.rows
    expected = contrast(friend(z0, support), p1, 0.2) / 2 + contrast(friend(z1, support), p0, 0.2) / 2
    expected.backward()
    torch.testing.assert_close(out.loss, expected)
    theirs = gradients(twin)
    assert set(theirs) == set(gradients(method))
    for name, grad in gradients(method).items():
        torch.testing.assert_close(grad, theirs[name], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(method.queue.rows, torch.cat([unit(z0.detach()), support[7:]]))


def test_the_neighbour_is_the_closest_row():
    torch.manual_seed(1)
    z, support = torch.randn(9, 8), unit(torch.randn(30, 8))
    torch.testing.assert_close(support[nearest(z, support)], friend(z, support))
    assert torch.equal(nearest(3 * support, support), torch.arange(30))


def test_a_temperature_of_nothing_is_refused():
    with pytest.raises(ValueError, match="temperature=0"):
        make(temperature=0.0)
