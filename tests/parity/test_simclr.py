"""SimCLR against equation 1 of the paper, written out."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from ssl_suite.methods.pretraining.simclr import SimCLR
from tests.parity.tiny import Tiny, pictures, views


def nt_xent(z0: Tensor, z1: Tensor, temperature: float) -> float:
    """Equation 1: for every one of the 2B embeddings, -log softmax of its partner among the 2B - 1 others."""
    z = [v / v.norm() for v in torch.cat([z0, z1]).double()]
    n, total = len(z), 0.0
    for i in range(n):
        partner = (i + n // 2) % n
        others = sum(math.exp(float(z[i] @ z[k]) / temperature) for k in range(n) if k != i)
        total -= float(z[i] @ z[partner]) / temperature - math.log(others)
    return total / n


def embedded(method: SimCLR, x: Tensor) -> Tensor:
    return method.projector(method.backbone(x))


@pytest.mark.parametrize("temperature", [0.1, 0.5, 2.0])
def test_the_loss_is_equation_one(temperature: float) -> None:
    torch.manual_seed(0)
    method = SimCLR(Tiny(), views(), temperature=temperature, hidden_dim=32, projection_dim=8)
    batch = pictures(7, labels=False)
    z0, z1 = embedded(method, torch.cat(method.views(batch, "crop", "crop"))).chunk(2)
    out = method.step(batch)
    assert out.loss.item() == pytest.approx(nt_xent(z0, z1, temperature), rel=1e-5)
    assert out.features is not None
    assert out.features.shape == (7, 16)
    assert not out.features.requires_grad


def test_both_views_pass_the_network_together() -> None:
    """BatchNorm sees both views at once, as in the official code: one update of the statistics a step."""
    method = SimCLR(Tiny(), views(), hidden_dim=32, projection_dim=8)
    method.step(pictures(6, labels=False))
    assert method.backbone.norm.num_batches_tracked == 1


def test_the_two_views_differ_and_labels_play_no_part() -> None:
    torch.manual_seed(0)
    method = SimCLR(Tiny(), views(), hidden_dim=32, projection_dim=8)
    first, second = method.views(pictures(6), "crop", "crop")
    assert not torch.equal(first, second)
    assert torch.equal(method.step(pictures(6)).loss, method.step(pictures(6, labels=False)).loss)


def test_equal_views_of_distant_samples_reach_the_least_loss() -> None:
    torch.manual_seed(0)
    z = torch.eye(4)
    least = -1 / 0.1 + math.log(math.exp(1 / 0.1) + 6)
    assert nt_xent(z, z, 0.1) == pytest.approx(least, abs=1e-6)


def test_a_temperature_of_nothing_is_refused() -> None:
    method = SimCLR(Tiny(), views(), temperature=0.0, hidden_dim=32, projection_dim=8)
    with pytest.raises(ValueError, match="temperature"):
        method.step(pictures(4))
