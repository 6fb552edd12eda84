"""EATA against the paper's arithmetic, row by row in numpy."""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

from ssl_suite.methods.adaptation.eata import Eata

LR, E0, D, LAMBDA, MOMENTUM = 0.5, 0.7, 0.85, 3.0, 0.9


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.BatchNorm1d(5), nn.Linear(5, 3)).double()


def batch(seed: int) -> torch.Tensor:
    return torch.randn(20, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) * 3 + 1


def forward(model: nn.Module, x: torch.Tensor, gamma: np.ndarray, beta: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    n = ((x - x.mean(0)) / (x.var(0, unbiased=False) + model[0].eps).sqrt()).numpy()
    z = (n * gamma + beta) @ model[1].weight.detach().numpy().T + model[1].bias.detach().numpy()
    p = np.exp(z - z.max(1, keepdims=True))
    return n, p / p.sum(1, keepdims=True)


def test_two_batches_equal_the_computation_by_hand():
    model = net()
    weight = model[1].weight.detach().numpy()
    adapter = Eata(model, e0_factor=E0, d_margin=D, fisher_weight=LAMBDA, optimizer=partial(torch.optim.SGD, lr=LR))
    source = [np.ones(5), np.zeros(5)]
    fisher = [np.zeros(5), np.zeros(5)]
    clean = [batch(90), batch(91)]
    adapter.calibrate((x, None) for x in clean)
    for x in clean:
        n, p = forward(model, x, *source)
        delta = (p - np.eye(3)[p.argmax(1)]) / len(x) @ weight
        fisher = [fisher[0] + (delta * n).sum(0) ** 2 / 2, fisher[1] + delta.sum(0) ** 2 / 2]
    for mine, theirs in zip(adapter.fisher.tensors, fisher, strict=True):
        np.testing.assert_allclose(mine.numpy(), theirs, rtol=1e-5)

    theta, mean, e0, kept = [s.copy() for s in source], None, E0 * math.log(3), []
    for seed in range(2):
        report = adapter.adapt(batch(seed))
        n, p = forward(model, batch(seed), *theta)
        rows, gradient = [], [np.zeros(5), np.zeros(5)]
        for i in range(20):
            h = -(p[i] * np.log(p[i])).sum()
            cosine = 0.0 if mean is None else abs(p[i] @ mean) / np.linalg.norm(p[i]) / np.linalg.norm(mean)
            if h < e0 and cosine < D:
                rows.append(i)
                delta = math.exp(e0 - h) * -p[i] * (np.log(p[i]) + h) @ weight
                gradient[0] += delta * n[i]
                gradient[1] += delta
        kept.append(len(rows))
        assert report.n_used == len(rows)
        fresh = p[rows].mean(0)
        mean = fresh if mean is None else MOMENTUM * mean + (1 - MOMENTUM) * fresh
        theta = [t - LR * (g / len(rows) + 2 * LAMBDA * f * (t - s))
                 for t, g, f, s in zip(theta, gradient, fisher, source, strict=True)]
    assert all(0 < k < 20 for k in kept), f"a filter that lets {kept} of 20 pass tests nothing"
    np.testing.assert_allclose(adapter.model[0].weight.detach().numpy(), theta[0], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(adapter.model[0].bias.detach().numpy(), theta[1], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(adapter.mean_probs.numpy(), mean, rtol=1e-5)


def test_nothing_reliable_moves_nothing_not_even_by_momentum():
    adapter = Eata(net(), e0_factor=E0, optimizer=partial(torch.optim.Adam, lr=0.1))
    assert adapter.adapt(batch(0)).n_used > 0
    weight, mean = adapter.model[0].weight.clone(), adapter.mean_probs.clone()
    with torch.no_grad():
        adapter.model[1].weight.zero_()
        adapter.model[1].bias.zero_()  # every prediction is uniform now
    report = adapter.adapt(batch(1))
    assert (report.verdict, report.n_used) == ("ok", 0)
    assert torch.equal(adapter.model[0].weight, weight)
    assert torch.equal(adapter.mean_probs, mean)


def test_reset_keeps_what_was_measured_before_deployment():
    adapter = Eata(net())
    adapter.adapt(batch(0))
    adapter.calibrate([(batch(90), None)])
    fisher = [f.clone() for f in adapter.fisher.tensors]
    assert all(f.any() for f in fisher)
    assert torch.equal(adapter.model[0].weight, torch.ones(5, dtype=torch.float64))
    adapter.adapt(batch(1))
    adapter.reset()
    assert all(torch.equal(a, b) for a, b in zip(fisher, adapter.fisher.tensors, strict=True))


@pytest.mark.parametrize(("key", "value"), [("e0_factor", 0.0), ("d_margin", -1.0), ("steps", 0), ("momentum", 1.0)])
def test_bad_values_are_named(key: str, value: float):
    with pytest.raises(ValueError, match=rf"adapter\.{key}={value}"):
        Eata(net(), **{key: value})
