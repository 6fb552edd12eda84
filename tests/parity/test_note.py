"""NOTE against its normalisation, its lists per class and its updates written out."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from functools import partial

import pytest
import timm.layers
import torch
from torch import Tensor, nn

from ssl_suite.functional.random import Draw, sample_keys
from ssl_suite.methods.adaptation.note import Note

SIZE, EVERY, K, M, LR, SEED, CLASSES = 7, 10, 1.5, 0.2, 0.5, 3, 3


@pytest.fixture(autouse=True)
def double():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def net() -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(36, CLASSES))
    model[0].running_mean.normal_(std=0.1)
    model[0].running_var.uniform_(0.5, 2.0)
    return model


def batch(seed: int, n: int = 8) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 4, 3, 3, generator=generator)
    return (x + torch.randn(n, 4, 1, 1, generator=generator)) * (0.5 + torch.rand(n, 4, 1, 1, generator=generator))


def beyond(difference: Tensor, width: Tensor) -> Tensor:
    return difference.sign() * (difference.abs() - width).clamp(min=0)


def normalised(x: Tensor, mean: Tensor, var: Tensor, k: float = K, eps: float = 1e-5) -> Tensor:
    """Sample by sample and channel by channel."""
    out = torch.empty_like(x)
    for b in range(len(x)):
        for c in range(x.shape[1]):
            values, s2 = x[b, c].flatten(), var[c] + eps
            n = len(values)
            mu = mean[c] + beyond(values.mean() - mean[c], k * (s2 / n).sqrt())
            sigma2 = (var[c] + beyond(values.var() - var[c], k * s2 * math.sqrt(2 / (n - 1)))).clamp(min=0)
            out[b, c] = (x[b, c] - mu) / (sigma2 + eps).sqrt()
    return out


def test_the_correction_equals_the_formula():
    """Some samples are corrected and some are not, in both moments."""
    model, x = net(), batch(0)
    mean, var = model[0].running_mean, model[0].running_var
    adapter = Note(model, sample_shape=(4, 3, 3), k=K)
    torch.testing.assert_close(adapter.predict(x), model[1:](normalised(x, mean, var)).detach().float(), check_dtype=False)
    width = K * ((var + 1e-5) / 9).sqrt()
    far = (x.mean((2, 3)) - mean).abs() > width
    assert far.any()
    assert not far.all()


def test_an_infinite_k_is_ordinary_batch_norm():
    model, x = net().eval(), batch(0)
    adapter = Note(model, sample_shape=(4, 3, 3), k=math.inf)
    torch.testing.assert_close(adapter.predict(x), model(x).detach().float(), check_dtype=False)


def test_a_prediction_does_not_depend_on_its_batch():
    adapter, x = Note(net(), sample_shape=(4, 3, 3), k=K), batch(0)
    torch.testing.assert_close(adapter.predict(x), torch.cat([adapter.predict(row) for row in x.split(1)]))


@pytest.mark.parametrize("layers", [lambda: [nn.BatchNorm1d(4)],
                                    lambda: [nn.Unflatten(1, (4, 1, 1)), timm.layers.BatchNormAct2d(4), nn.Flatten()]])
def test_one_position_per_channel_is_plain_batch_norm(layers: Callable[[], list[nn.Module]]):
    model, x = nn.Sequential(*layers(), nn.Linear(4, 3)).eval(), 3 * torch.randn(6, 4)
    adapter = Note(model, sample_shape=(4,), update_every=6)
    torch.testing.assert_close(adapter.predict(x), model(x).detach().float(), check_dtype=False)
    assert adapter.adapt(x).verdict == "ok"
    assert Note(model, sample_shape=(4,), update_every=1).adapt(x).verdict == "ok", "a memory of one sample"


class Lists:
    """The reservoir of the paper: a list of samples for each class, fed the same numbers."""

    def __init__(self) -> None:
        self.lists: list[list[tuple[int, Tensor]]] = [[] for _ in range(CLASSES)]
        self.met: Counter[int] = Counter()
        self.refused = 0

    def insert(self, x: Tensor, label: int, draw: Tensor) -> None:
        self.met[label] += 1
        slots = {slot for entries in self.lists for slot, _ in entries}
        if len(slots) < SIZE:
            self.lists[label].append((len(slots), x))
            return
        longest = max(map(len, self.lists))
        largest = [c for c in range(CLASSES) if len(self.lists[c]) == longest]
        if label in largest and draw[-1] > len(self.lists[label]) / self.met[label]:
            self.refused += 1
            return
        leavers = [(c, e) for c in ([label] if label in largest else largest) for e in self.lists[c]]
        c, leaver = max(leavers, key=lambda pair: draw[pair[1][0]])
        self.lists[c] = [e for e in self.lists[c] if e[0] != leaver[0]]
        self.lists[label].append((leaver[0], x))

    def table(self) -> list[tuple[int, int, float]]:
        return sorted((c, slot, round(float(x.sum()), 6)) for c in range(CLASSES) for slot, x in self.lists[c])


def contents(adapter: Note) -> list[tuple[int, int, float]]:
    rows, memory = adapter.memory.rows(), adapter.memory
    labels, samples = memory.labels[rows].tolist(), memory.samples[rows]
    return sorted((c, slot, round(float(x.sum()), 6)) for c, slot, x in zip(labels, rows.tolist(), samples, strict=True))


def test_the_memory_equals_lists_per_class():
    adapter, lists, count = Note(net(), sample_shape=(4, 3, 3), memory_size=SIZE, update_every=10_000, seed=SEED), Lists(), 0
    sizes = set()
    for seed in range(12):
        logits, _ = adapter.predict_and_adapt(batch(seed))
        for x, label in zip(batch(seed), logits.argmax(1).tolist(), strict=True):
            key = sample_keys(SEED, torch.zeros(1, dtype=torch.int64), torch.tensor([count]))
            lists.insert(x, label, Draw(key).uniform(SIZE + 1)[0])
            count += 1
        assert contents(adapter) == lists.table()
        sizes.add(tuple(map(len, lists.lists)))
    assert len(sizes) > 1
    assert 0 < lists.refused < count - SIZE


def test_every_moment_has_the_same_chance_to_stay():
    """Of 40 samples of one class in a memory of 8, early ones stay with the same probability as all, 1 / 5."""
    stays, runs = torch.zeros(40), 50
    model = nn.Sequential(nn.LayerNorm(1), nn.Linear(1, 2))
    for seed in range(runs):
        adapter = Note(model, sample_shape=(1,), memory_size=8)
        draws = Draw(sample_keys(seed, torch.zeros(40, dtype=torch.int64), torch.arange(40))).uniform(9)
        for i in range(40):
            adapter.remember(torch.tensor([float(i)]), torch.tensor(1), torch.tensor(0), draws[i])
        stays[adapter.memory.samples[:, 0].long()] += 1 / runs
    assert stays.sum().item() == pytest.approx(8)
    assert stays[:8].mean().item() == pytest.approx(0.2, abs=0.06)
    assert stays[:20].mean().item() == pytest.approx(0.2, abs=0.04)


def test_three_batches_equal_the_computation_by_hand():
    """Updates come after samples 10 and 20, in the middle of batches of 8, and hold for the samples after them."""
    adapter = Note(net(), sample_shape=(4, 3, 3), memory_size=SIZE, update_every=EVERY, k=K, momentum=M, seed=SEED,
                   optimizer=partial(torch.optim.SGD, lr=LR))
    model, lists, count = net(), Lists(), 0
    gamma, beta, mean, var = (t.detach().clone() for t in (model[0].weight, model[0].bias, model[0].running_mean,
                                                           model[0].running_var))

    def head(z: Tensor) -> Tensor:
        return model[1:](z * gamma[:, None, None] + beta[:, None, None])

    for seed in range(3):
        expected, loss = [], torch.zeros(())
        for x in batch(seed):
            expected.append(head(normalised(x[None], mean, var)).detach()[0])
            key = sample_keys(SEED, torch.zeros(1, dtype=torch.int64), torch.tensor([count]))
            lists.insert(x, int(expected[-1].argmax()), Draw(key).uniform(SIZE + 1)[0])
            count += 1
            if count % EVERY == 0:
                kept = torch.stack([e[1] for entries in lists.lists for e in entries])
                gamma, beta = gamma.requires_grad_(), beta.requires_grad_()
                batch_mean, batch_var = kept.mean((0, 2, 3)), kept.transpose(0, 1).flatten(1).var(1)
                p = head(normalised(kept, batch_mean, batch_var)).softmax(1)
                loss = -(p * p.log()).sum(1).mean()
                steps = torch.autograd.grad(loss, (gamma, beta))
                gamma, beta = (t.detach() - LR * g for t, g in zip((gamma, beta), steps, strict=True))
                mean, var = mean + M * (batch_mean - mean), var + M * (batch_var - var)
        logits, report = adapter.predict_and_adapt(batch(seed))
        torch.testing.assert_close(logits, torch.stack(expected).float(), check_dtype=False, rtol=1e-5, atol=1e-5)
        assert report.loss == pytest.approx(loss.item(), rel=1e-5, abs=1e-7)
    layer = adapter.model[0]
    for mine, theirs in ((layer.weight, gamma), (layer.bias, beta), (layer.running_mean, mean), (layer.running_var, var)):
        torch.testing.assert_close(mine.detach(), theirs, rtol=1e-5, atol=1e-6)
    assert not torch.equal(gamma, model[0].weight)


def test_bad_values_are_named():
    for key, value in (("memory_size", 0), ("update_every", 0), ("k", -1.0), ("k", math.nan), ("momentum", 2.0)):
        with pytest.raises(ValueError, match=rf"adapter\.{key}={value}"):
            Note(net(), sample_shape=(4, 3, 3), **{key: value})
    with pytest.raises(ValueError, match=r"adapter\.sample_shape=\(4, 3, 2\)"):
        Note(net(), sample_shape=(4, 3, 2)).adapt(batch(0))
