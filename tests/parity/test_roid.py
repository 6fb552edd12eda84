"""ROID against its weights, losses, averaging and prior written out."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from ssl_suite.functional.random import Draw, sample_keys
from ssl_suite.methods.adaptation.roid import Roid, soft_likelihood_ratio
from ssl_suite.views import Views

LR, T, M, MS, SEED = 0.2, 1 / 3, 0.9, 0.9, 3


class Noise:
    def __call__(self, x: Tensor, draw: Draw, length: Tensor | None) -> Tensor:
        return x + 0.5 * draw.normal(*x.shape[1:])


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.LayerNorm(5), nn.Linear(5, 3))


def batch(seed: int) -> Tensor:
    return torch.randn(20, 5, generator=torch.Generator().manual_seed(seed))


def unit(values: list[float]) -> list[float]:
    return [(v - min(values)) / (max(values) - min(values)) for v in values]


def test_two_batches_equal_the_computation_by_hand():
    adapter = Roid(net(), views=Views({"weak": [Noise()]}), temperature=T, momentum=M, momentum_source=MS, seed=SEED,
                   optimizer=partial(torch.optim.SGD, lr=LR))
    model, mean = net(), torch.full((3,), 1 / 3)
    for seed in range(2):
        x, index = batch(seed), torch.arange(20) + 30 * seed
        logits, report = adapter.predict_and_adapt(x, index=index)
        z = model(x)
        other = model(x + 0.5 * Draw(sample_keys(SEED, torch.zeros_like(index), index)).normal(5))
        p, q = z.softmax(1), other.softmax(1)
        rows = p.detach()
        cosine = [float(r @ mean / r.norm() / mean.norm()) for r in rows]
        diversity, certainty = unit([1 - c for c in cosine]), unit([float((r * r.log()).sum()) for r in rows])
        average = sum(diversity) / 20
        weight = [math.exp(d * c / T) if d >= average else 0.0 for d, c in zip(diversity, certainty, strict=True)]
        mean = M * mean + (1 - M) * rows.mean(0)
        assert 0 < report.n_used == sum(w > 0 for w in weight) < 20
        ratio = [-(p[i].clamp(max=0.99) * (p[i].clamp(max=0.99) / (1 - p[i].clamp(max=0.99)) + 1e-5).log()).sum()
                 for i in range(20)]
        both = [-0.5 * (p[i] * q[i].log()).sum() - 0.5 * (q[i] * p[i].log()).sum() for i in range(20)]
        loss = sum(w * (r + b) for w, r, b in zip(weight, ratio, both, strict=True)) / 20
        assert report.loss == pytest.approx(loss.item(), rel=1e-4)
        moved = list(torch.autograd.grad(loss, list(model[0].parameters())))
        with torch.no_grad():
            for theta, g, source in zip(model[0].parameters(), moved, (torch.ones(5), torch.zeros(5)), strict=True):
                theta.copy_(MS * (theta - LR * g) + (1 - MS) * source)
        prior = rows.mean(0)
        smooth = max(1 / 20, 1 / 3) / float(prior.max())
        torch.testing.assert_close(logits, z.detach() * (prior + smooth) / (1 + smooth * 3))
    torch.testing.assert_close(adapter.model[0].weight.detach(), model[0].weight.detach(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(adapter.model[0].bias.detach(), model[0].bias.detach(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(adapter.mean_probs, mean)


def test_the_ratio_keeps_a_gradient_where_entropy_has_none():
    logits = torch.tensor([[4.0, 0.0, 0.0]], requires_grad=True)
    ratio = torch.autograd.grad(soft_likelihood_ratio(logits).sum(), logits)[0]
    entropy = torch.autograd.grad(-(logits.softmax(1) * logits.log_softmax(1)).sum(), logits)[0]
    assert ratio.norm() > 2 * entropy.norm()


@pytest.mark.parametrize(("key", "value"), [("temperature", 0.0), ("momentum", 1.0), ("momentum_source", 2.0)])
def test_bad_values_are_named(key: str, value: float):
    with pytest.raises(ValueError, match=rf"adapter\.{key}={value}"):
        Roid(net(), **{key: value})
