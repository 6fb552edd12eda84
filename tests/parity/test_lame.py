"""LAME against its iteration written out in numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from ssl_suite.methods.adaptation.lame import Lame, smoothed


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 3))


def softmax(z: np.ndarray) -> np.ndarray:
    p = np.exp(z - z.max(1, keepdims=True))
    return p / p.sum(1, keepdims=True)


@pytest.mark.parametrize("kind", ["rbf", "knn"])
def test_two_batches_equal_the_iteration_by_hand(kind: str):
    model, adapter = net(), Lame(net(), affinity=kind, k=4, iterations=30)
    for seed in range(2):
        x = torch.randn(10, 5, generator=torch.Generator().manual_seed(seed))
        h = model[:2](x).detach().double()
        p = softmax(model[2](h.float()).detach().double().numpy())
        z = h.numpy() / np.linalg.norm(h.numpy(), axis=1, keepdims=True)
        d = np.linalg.norm(z[:, None] - z[None], axis=2)
        if kind == "rbf":
            sigma = np.sort(d, axis=1)[:, 3].mean()
            w = np.exp(-d ** 2 / (2 * sigma ** 2))
        else:
            w = np.zeros((10, 10))
            for i in range(10):
                w[i, [j for j in np.argsort(d[i]) if j != i][:4]] = 1
        y = p
        for _ in range(30):
            y = softmax(np.log(p) + w @ y)
        logits, report = adapter.predict_and_adapt(x)
        assert report.verdict == "ok"
        exact = smoothed(torch.from_numpy(np.log(p)), torch.from_numpy(w), 30).softmax(1)
        np.testing.assert_allclose(exact.numpy(), y, atol=1e-8)
        np.testing.assert_allclose(logits.softmax(1).numpy(), y, atol=1e-3)  # float32, carried through 30 rounds
        assert (logits.argmax(1) != torch.from_numpy(p).argmax(1)).any(), "nothing was smoothed"


def test_samples_of_one_cluster_agree():
    model = net()
    x = torch.randn(1, 5, generator=torch.Generator().manual_seed(3)) + 0.05 * torch.randn(16, 5)
    assert Lame(model).predict(x).argmax(1).unique().numel() == 1


def test_one_sample_is_left_as_it_is():
    x = torch.randn(1, 5)
    assert torch.equal(Lame(net()).predict(x), net()(x).detach())


@pytest.mark.parametrize(("key", "value"), [("affinity", "linear"), ("k", 0), ("iterations", 0)])
def test_bad_values_are_named(key: str, value: object):
    with pytest.raises(ValueError, match=rf"adapter\.{key}={value!r}"):
        Lame(net(), **{key: value})
