"""SAR against its two steps written out, and its way back."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from ssl_suite.methods.adaptation.sar import Sar

LR, RHO, E0, MOMENTUM = 0.2, 0.5, 0.6, 0.9


def net() -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.LayerNorm(5), nn.Linear(5, 8), nn.LayerNorm(8), nn.Linear(8, 3)).double()
    with torch.no_grad():
        model[3].weight.mul_(4)
    return model


def batch(seed: int, scale: float = 3.0) -> Tensor:
    return torch.randn(20, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) * scale + 1


def losses(model: nn.Module, theta: list[Tensor], x: Tensor) -> Tensor:
    """Entropies from scratch, with the first layer's scale and shift as given."""
    n = (x - x.mean(1, keepdim=True)) / (x.var(1, unbiased=False, keepdim=True) + model[0].eps).sqrt()
    z = model[3](model[2](model[1](n * theta[0] + theta[1])))
    p = z.exp() / z.exp().sum(1, keepdim=True)
    return -(p * p.log()).sum(1)


def gradient(model: nn.Module, theta: list[Tensor], x: Tensor, rows: list[int]) -> list[Tensor]:
    theta = [t.clone().requires_grad_() for t in theta]
    return list(torch.autograd.grad(losses(model, theta, x)[rows].mean(), theta))


def test_two_batches_equal_the_computation_by_hand():
    model, e0 = net(), E0 * math.log(3)
    adapter = Sar(model, e0_factor=E0, rho=RHO, reset_below=0.0, skip_top=0.5,
                  optimizer=partial(torch.optim.SGD, lr=LR, momentum=0.9), stats="source")
    theta, speed, mean, dropped = [torch.ones(5).double(), torch.zeros(5).double()], [0.0, 0.0], None, []
    for seed in range(2):
        x = batch(seed)
        report = adapter.adapt(x)
        h = losses(model, theta, x)
        first = [i for i in range(20) if h[i] < e0]
        g = gradient(model, theta, x, first)
        length = math.sqrt(sum(float((t ** 2).sum()) for t in g))
        up = [t + RHO * d / length for t, d in zip(theta, g, strict=True)]
        worse = losses(model, up, x)
        second = [i for i in first if worse[i] < e0]
        dropped.append((20 - len(first), len(first) - len(second)))
        g = gradient(model, up, x, second)
        speed = [0.9 * v + d for v, d in zip(speed, g, strict=True)]
        theta = [t - LR * v for t, v in zip(theta, speed, strict=True)]
        loss = worse[second].mean().item()
        mean = loss if mean is None else MOMENTUM * mean + (1 - MOMENTUM) * loss
        assert report.loss == pytest.approx(loss, rel=1e-5)
        assert report.n_used == len(second)
    assert any(a for a, _ in dropped), "nothing was unsure, so the first filter was not tested"
    assert any(b for _, b in dropped), "nothing became unsure, so the second filter was not tested"
    torch.testing.assert_close(adapter.model[0].weight.detach(), theta[0], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(adapter.model[0].bias.detach(), theta[1], rtol=1e-5, atol=1e-6)
    assert float(adapter.mean_loss) == pytest.approx(mean, rel=1e-5)
    assert torch.equal(adapter.model[2].weight, model[2].weight), "the top layer must not learn"


def test_a_loss_near_zero_brings_the_source_back():
    sure = net()
    with torch.no_grad():
        sure[3].weight.mul_(100)
    adapter = Sar(sure, stats="source", optimizer=partial(torch.optim.SGD, lr=0.1))
    floor = 0.2 * math.log(3) / math.log(1000)
    report = adapter.adapt(batch(0))
    assert report.n_used > 0
    assert report.loss < floor
    assert torch.equal(adapter.model[0].weight, sure[0].weight)
    assert adapter.mean_loss.isinf()
    never = Sar(sure, stats="source", optimizer=partial(torch.optim.SGD, lr=0.1), reset_below=0.0)
    never.adapt(batch(0))
    assert not torch.equal(never.model[0].weight, sure[0].weight)


def test_nothing_reliable_moves_nothing():
    unsure = net()
    with torch.no_grad():
        unsure[3].weight.zero_()
        unsure[3].bias.zero_()
    adapter = Sar(unsure, stats="source")
    report = adapter.adapt(batch(0))
    assert (report.verdict, report.n_used) == ("ok", 0)
    assert torch.equal(adapter.model[0].weight, unsure[0].weight)
    assert not adapter.optimizer.state_dict()["state"]


@pytest.mark.parametrize(("key", "value"), [("rho", -0.1), ("e0_factor", 0.0), ("skip_top", 1.0), ("skip_top", 0.9)])
def test_bad_values_are_named(key: str, value: float):
    with pytest.raises(ValueError, match=rf"adapter\.{key}={value}"):
        Sar(net(), **{key: value})
