"""DeYO against its filter and weights written out row by row, and the shuffling of patches against loops."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from ssl_suite.functional.random import Draw, sample_keys
from ssl_suite.methods.adaptation.deyo import DeYO, shuffle_patches

LR, TAU, E0, PLPD, SEED = 0.05, 0.6, 0.4, 0.05, 2


def net() -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.LayerNorm(64), nn.Linear(64, 16), nn.LayerNorm(16), nn.Linear(16, 3)).double()
    with torch.no_grad():
        model[4].weight.mul_(4)
    return model


def batch(seed: int) -> Tensor:
    return torch.randn(20, 1, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def shuffled(x: Tensor, n: int, draw: Draw) -> Tensor:
    order, out = draw.permutation(n * n), torch.empty_like(x)
    h, w = x.shape[2] // n, x.shape[3] // n
    for b in range(len(x)):
        for to in range(n * n):
            source = int(order[b, to])
            out[b, :, to // n * h:(to // n + 1) * h, to % n * w:(to % n + 1) * w] = \
                x[b, :, source // n * h:(source // n + 1) * h, source % n * w:(source % n + 1) * w]
    return out


@pytest.mark.parametrize("shape", [(4, 3, 8, 12), (4, 1, 8, 8)])
def test_patches_are_shuffled_as_by_loops(shape: tuple[int, ...]):
    x, keys = torch.randn(shape), sample_keys(0, torch.zeros(4, dtype=torch.long), torch.arange(4))
    result = shuffle_patches(x, 4, Draw(keys))
    assert torch.equal(result, shuffled(x, 4, Draw(keys)))
    assert not torch.equal(result, x)


def test_odd_sizes_are_resized():
    x, keys = torch.randn(4, 1, 9, 11), sample_keys(0, torch.zeros(4, dtype=torch.long), torch.arange(4))
    assert shuffle_patches(x, 4, Draw(keys)).shape == x.shape
    with pytest.raises(ValueError, match=r"adapter\.patches=4: pictures of 3x8"):
        shuffle_patches(torch.randn(4, 1, 3, 8), 4, Draw(keys))


def test_two_batches_equal_the_computation_by_hand():
    model = net()
    adapter = DeYO(model, entropy_factor=TAU, e0_factor=E0, plpd=PLPD, seed=SEED, stats="source", skip_top=0.5,
                   optimizer=partial(torch.optim.SGD, lr=LR, momentum=0.9))
    theta, speed, counts = [torch.ones(64).double(), torch.zeros(64).double()], [0.0, 0.0], []
    for seed in range(2):
        x, index = batch(seed), torch.arange(20) + 50 * seed
        report = adapter.adapt(x, index=index)
        t = [p.clone().requires_grad_() for p in theta]

        def probs(x: Tensor, t: list[Tensor]) -> Tensor:
            h = x.flatten(1)
            n = (h - h.mean(1, keepdim=True)) / (h.var(1, unbiased=False, keepdim=True) + 1e-5).sqrt()
            return model[2:](n * t[0] + t[1]).softmax(1)

        p = probs(x, t)
        torn = probs(shuffled(x, 4, Draw(sample_keys(SEED, torch.zeros_like(index), index))), t).detach()
        terms, sure = [], 0
        for i in range(20):
            h, c = -(p[i] * p[i].log()).sum(), int(p[i].argmax())
            drop = float(p[i, c].detach() - torn[i, c])
            if h < TAU * math.log(3):
                sure += 1
                if drop > PLPD:
                    terms.append(h * (math.exp(E0 * math.log(3) - h.item()) + math.exp(drop)))
        counts.append((sure, len(terms)))
        loss = torch.stack(terms).mean()
        assert report.loss == pytest.approx(loss.item(), rel=1e-4)
        assert report.n_used == len(terms)
        speed = [0.9 * v + g for v, g in zip(speed, torch.autograd.grad(loss, t), strict=True)]
        theta = [a - LR * v for a, v in zip(theta, speed, strict=True)]
    assert all(0 < used < sure < 20 for sure, used in counts), counts
    torch.testing.assert_close(adapter.model[1].weight.detach(), theta[0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(adapter.model[1].bias.detach(), theta[1], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("key", "value"), [("plpd", 1.0), ("patches", 0), ("entropy_factor", 0.0)])
def test_bad_values_are_named(key: str, value: float):
    with pytest.raises(ValueError, match=rf"adapter\.{key}={value}"):
        DeYO(net(), **{key: value})
