"""RoTTA against lists per class, as the paper has its memory, and its update written out."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from ssl_suite.functional.random import Draw, sample_keys
from ssl_suite.methods.adaptation.rotta import RoTTA
from ssl_suite.views import Views

SIZE, LR, ALPHA, NU, SEED, K = 13, 0.5, 0.2, 0.1, 3, 3


class Noise:
    def __call__(self, x: Tensor, draw: Draw, length: Tensor | None) -> Tensor:
        return x + 0.3 * draw.normal(*x.shape[1:])


def net() -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.BatchNorm1d(5), nn.Linear(5, K))
    model[0].running_mean.normal_(std=0.1)
    model[0].running_var.uniform_(0.5, 2.0)
    return model


def batch(seed: int, n: int = 9) -> Tensor:
    return torch.randn(n, 5, generator=torch.Generator().manual_seed(seed)) * (1 + seed % 3)


class Lists:
    """The memory of the paper: a list of [sample, entropy, age] for each class."""

    def __init__(self) -> None:
        self.lists: list[list[list]] = [[] for _ in range(K)]

    def score(self, age: float, uncertainty: float) -> float:
        return 1 / (1 + math.exp(-age / SIZE)) + uncertainty / math.log(K)

    def insert(self, x: Tensor, label: int, uncertainty: float) -> None:
        total = sum(map(len, self.lists))
        if len(self.lists[label]) < SIZE / K and total < SIZE:
            self.lists[label].append([x, uncertainty, 0])
        else:
            longest = max(map(len, self.lists))
            full = len(self.lists[label]) >= SIZE / K
            classes = [label] if full else [c for c in range(K) if len(self.lists[c]) == longest]
            worst = max((self.score(e[2], e[1]), c, i) for c in classes for i, e in enumerate(self.lists[c]))
            if worst[0] > self.score(0, uncertainty):
                self.lists[worst[1]].pop(worst[2])
                self.lists[label].append([x, uncertainty, 0])
        for entries in self.lists:
            for e in entries:
                e[2] += 1

    def table(self) -> list[tuple]:
        return sorted((c, e[2], round(e[1], 4), round(float(e[0].sum()), 3)) for c in range(K) for e in self.lists[c])


def contents(adapter: RoTTA) -> list[tuple]:
    rows = adapter.memory.rows()
    entries = zip(*(bank[rows].tolist() for bank in (adapter.memory.labels, adapter.age, adapter.uncertainty)),
                  adapter.memory.samples[rows], strict=True)
    return sorted((c, int(a), round(u, 4), round(float(x.sum()), 3)) for c, a, u, x in entries)


def test_the_memory_equals_lists_per_class():
    adapter, lists, model = RoTTA(net(), sample_shape=(5,), memory_size=SIZE, update_every=10_000), Lists(), net().eval()
    sizes = set()
    for seed in range(16):
        x = batch(seed)
        p = model(x).softmax(1).detach()
        for row, q in zip(x, p, strict=True):
            lists.insert(row, int(q.argmax()), float(-(q * q.log()).sum()))
        logits, _ = adapter.predict_and_adapt(x)
        torch.testing.assert_close(logits, model(x).detach())
        assert contents(adapter) == lists.table()
        sizes.add(tuple(map(len, lists.lists)))
    assert len(sizes) > 1


def test_two_updates_equal_the_computation_by_hand():
    adapter = RoTTA(net(), sample_shape=(5,), views=Views({"strong": [Noise()]}), memory_size=SIZE, update_every=9, alpha=ALPHA,
                    nu=NU, seed=SEED, optimizer=partial(torch.optim.SGD, lr=LR))
    student = {"gamma": torch.ones(5), "beta": torch.zeros(5), "mean": net()[0].running_mean, "var": net()[0].running_var}
    teacher, linear = {k: v.clone() for k, v in student.items()}, net()[1]

    def run(weights: dict[str, Tensor], x: Tensor, move: bool) -> Tensor:
        mean, var = weights["mean"], weights["var"]
        if move:
            mean = (1 - ALPHA) * mean + ALPHA * x.mean(0)
            var = (1 - ALPHA) * var + ALPHA * x.var(0, unbiased=False)
            weights |= {"mean": mean.detach(), "var": var.detach()}
        return linear((x - mean) / (var + 1e-5).sqrt() * weights["gamma"] + weights["beta"])

    for seed in range(2):
        expected = run(teacher, batch(seed), move=False).detach()
        logits, report = adapter.predict_and_adapt(batch(seed))
        torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-5)
        rows = adapter.memory.rows()  # the memory itself is tested above
        x, age = adapter.memory.samples[rows], adapter.age[rows] / SIZE
        noise = 0.3 * Draw(sample_keys(SEED, torch.full_like(rows, 9 * (seed + 1)), rows)).normal(5)
        target = run(teacher, x, move=True).softmax(1).detach()
        learning = [student[k].clone().requires_grad_() for k in ("gamma", "beta")]
        student |= dict(zip(("gamma", "beta"), learning, strict=True))
        z = run(student, x + noise, move=True)
        loss = (-(target * z.log_softmax(1)).sum(1) * (-age).exp() / (1 + (-age).exp())).mean()
        assert report.loss == pytest.approx(loss.item(), rel=1e-4)
        for key, p, g in zip(("gamma", "beta"), learning, torch.autograd.grad(loss, learning), strict=True):
            student[key] = (p - LR * g).detach()
            teacher[key] = (1 - NU) * teacher[key] + NU * student[key]
    layer = adapter.model[0]
    for mine, key in ((layer.weight, "gamma"), (layer.bias, "beta"), (layer.running_mean, "mean"), (layer.running_var, "var")):
        torch.testing.assert_close(mine.detach(), student[key], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(adapter.predict(batch(9)), run(teacher, batch(9), move=False).detach(), rtol=1e-4, atol=1e-5)
    assert not torch.equal(teacher["mean"], net()[0].running_mean)


def test_bad_values_and_shapes_are_named():
    for key, value in (("memory_size", 0), ("update_every", 0), ("nu", 2.0), ("alpha", -1.0)):
        with pytest.raises(ValueError, match=rf"adapter\.{key}={value}"):
            RoTTA(net(), sample_shape=(5,), **{key: value})
    with pytest.raises(ValueError, match=r"adapter\.sample_shape=\(4,\)"):
        RoTTA(net(), sample_shape=(4,)).adapt(batch(0))
