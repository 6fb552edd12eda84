"""LeJEPA against the paper's loss, written out, and against lightly."""

from __future__ import annotations

import copy
from unittest import mock

import pytest
import torch
from lightly.loss import LeJEPALoss
from torch import Tensor

from ssl_suite.functional.sigreg import directions, sigreg
from ssl_suite.methods.pretraining.lejepa import LeJEPA
from tests.parity.test_swav import AnySize, small_and_large
from tests.parity.tiny import gradients, pictures


def make(**kwargs) -> LeJEPA:
    torch.manual_seed(0)
    given = {"local_crops": 2, "num_directions": 6, "hidden_dim": 32, "projection_dim": 4, **kwargs}
    return LeJEPA(AnySize(), small_and_large(), **given)


def epps_pulley(samples: Tensor) -> Tensor:
    """N times the weighted distance of the empirical characteristic function of numbers (N,) from the normal one."""
    t = torch.linspace(-3, 3, 33, dtype=torch.float64)
    empirical = torch.exp(1j * t * samples.double()[:, None]).mean(0)
    distance = (empirical - torch.exp(-t.square() / 2)).abs().square() * torch.exp(-t.square() / 2)
    return len(samples) * torch.trapezoid(distance, t)


def written_out(z: Tensor, along: Tensor, weight: float) -> Tensor:
    """(1 - lambda) times the distance of all views to the mean of the large ones, lambda times the mean statistic."""
    centre = (z[0] + z[1]) / 2
    distance = sum((view - centre).square().mean() for view in z) / len(z)
    statistic = sum(epps_pulley(view @ a) for view in z for a in along) / len(z) / len(along)
    return (1 - weight) * distance + weight * statistic


@pytest.mark.parametrize("weight", [0.0, 0.05, 1.0])
def test_value_and_gradient_equal_the_formula(weight):
    method, batch = make(gaussian=weight), pictures(6, labels=False)
    twin = copy.deepcopy(method)
    out = method.step(batch)
    out.loss.backward()
    x0, x1, *small = twin.views(batch, "crop", "crop", "local", "local")
    hs = [*twin.backbone(torch.cat([x0, x1])).chunk(2), *twin.backbone(torch.cat(small)).chunk(2)]
    z = torch.stack(twin.projector(torch.cat(hs)).chunk(4))
    expected = written_out(z, directions(6, 4, 0, torch.device("cpu")), weight)
    expected.backward()
    torch.testing.assert_close(out.loss, expected.float())
    theirs = gradients(twin)
    assert set(gradients(method)) == {name for name, _ in method.named_parameters()}
    for name, grad in gradients(method).items():
        torch.testing.assert_close(grad, theirs[name], atol=2e-5, rtol=1e-4)
    total = (1 - weight) * out.logs["invariance"] + weight * out.logs["gaussianity"]
    torch.testing.assert_close(out.loss.detach(), total)


def test_the_loss_equals_lightly():
    torch.manual_seed(1)
    z, along = torch.randn(5, 20, 4), directions(7, 4, 3, torch.device("cpu"))
    theirs = LeJEPALoss(lambda_param=0.05, sigreg_num_vectors=7)
    with mock.patch.object(theirs.sigreg, "_generate_unit_vectors", return_value=along.T):
        expected = theirs(global_proj=z[:2], local_proj=z[2:])
    torch.testing.assert_close(0.95 * (z - z[:2].mean(0)).square().mean() + 0.05 * sigreg(z, along), expected)


def test_directions_change_with_the_step():
    method, batch = make(gaussian=1.0), pictures(6, labels=False)
    with mock.patch.object(LeJEPA, "global_step", 1):
        later = method.step(batch).loss
    assert not torch.equal(method.step(batch).loss, later)


def test_a_weight_outside_of_the_unit_interval_is_refused():
    with pytest.raises(ValueError, match=r"gaussian=1\.5"):
        make(gaussian=1.5)
