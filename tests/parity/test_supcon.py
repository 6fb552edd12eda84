"""SupCon against equation 2 of the paper, written out."""

from __future__ import annotations

import math

import pytest
import torch
from lightly.loss import NTXentLoss
from torch import Tensor

from ssl_suite.functional.contrastive import supcon_loss
from ssl_suite.methods.pretraining.supcon import SupCon
from tests.parity.tiny import Tiny, pictures, views


def make(**kwargs) -> SupCon:
    torch.manual_seed(0)
    return SupCon(Tiny(), views(), hidden_dim=32, projection_dim=8, **kwargs)


def written_out(z: Tensor, y: Tensor, temperature: float) -> Tensor:
    """Equation 2: the sum over positives stands outside the logarithm."""
    z, total = z / z.norm(dim=1, keepdim=True), torch.zeros((), dtype=z.dtype)
    for i in range(len(z)):
        others = sum(torch.exp(z[i] @ z[a] / temperature) for a in range(len(z)) if a != i)
        positives = [p for p in range(len(z)) if p != i and y[p] == y[i]]
        total = total - sum(torch.log(torch.exp(z[i] @ z[p] / temperature) / others) for p in positives) / len(positives)
    return total / len(z)


@pytest.mark.parametrize("temperature", [0.07, 0.5])
def test_value_and_gradient_equal_equation_2(temperature):
    torch.manual_seed(1)
    z, y = torch.randn(10, 8, requires_grad=True), torch.tensor([0, 1, 2, 0, 1, 0, 1, 2, 0, 1])
    ours, theirs = supcon_loss(z, y, temperature), written_out(z.double(), y, temperature)
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-5)
    torch.testing.assert_close(torch.autograd.grad(ours, z)[0], torch.autograd.grad(theirs, z)[0], atol=1e-6, rtol=1e-4)


def test_a_class_for_each_sample_leaves_simclr():
    torch.manual_seed(1)
    z0, z1 = torch.randn(2, 6, 8)
    alone = supcon_loss(torch.cat([z0, z1]), torch.arange(6).repeat(2), 0.2)
    torch.testing.assert_close(alone, NTXentLoss(temperature=0.2)(z0, z1))


def test_step_takes_the_labels_and_both_views_in_one_pass():
    method, batch = make(), pictures(9)
    z = method.projector(method.backbone(torch.cat(method.views(batch, "crop", "crop"))))
    tracked = int(method.backbone.norm.num_batches_tracked)
    out = method.step(batch)
    assert method.backbone.norm.num_batches_tracked == tracked + 1
    torch.testing.assert_close(out.loss, written_out(z, batch["y"].repeat(2), 0.1))
    assert out.features.shape == (9, 16)
    assert not torch.equal(out.loss, method.step({**batch, "y": torch.arange(9) // 3}).loss)


def test_the_least_loss_is_reached_where_classes_are_points():
    z, y = torch.eye(3).repeat(4, 1), torch.arange(3).repeat(4)
    least = math.log(3 + 8 * math.exp(-1 / 0.1))
    assert supcon_loss(z, y, 0.1).item() == pytest.approx(least, rel=1e-5)


def test_a_temperature_of_nothing_is_refused():
    with pytest.raises(ValueError, match="temperature=0"):
        make(temperature=0.0)
