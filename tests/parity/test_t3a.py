"""T3A against a list of supports per class, sorted and cut as the paper says."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from ssl_suite.methods.adaptation.t3a import T3A


def net() -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 3))
    nn.init.normal_(model[2].bias)
    return model


def batch(seed: int, n: int = 12) -> torch.Tensor:
    return torch.randn(n, 5, generator=torch.Generator().manual_seed(seed)) * 2


@pytest.mark.parametrize("m", [1, 3, 100])
def test_three_batches_equal_the_lists_of_the_paper(m: int):
    model, adapter = net(), T3A(net(), filter_k=m)
    weight, bias = model[2].weight.detach().double().numpy(), model[2].bias.detach().double().numpy()
    lists: list[list[tuple[float, np.ndarray]]] = [[], [], []]

    def insert(z: np.ndarray) -> None:
        logits = z @ weight.T + bias
        p = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
        lists[int(p.argmax())].append((float(-(p * np.log(p)).sum()), z))

    def classify(z: np.ndarray) -> np.ndarray:
        out = []
        for entries in lists:
            total = sum((z_s / np.linalg.norm(z_s) for _, z_s in entries), np.zeros(8))
            out.append(z @ total / max(np.linalg.norm(total), 1e-12))
        return np.array(out)

    for row in weight:
        insert(row)
    for c in range(3):
        lists[c] = sorted(lists[c], key=lambda e: e[0])[:m]
    for seed in range(3):
        z = model[:2](batch(seed)).detach().double().numpy()
        for row in z:
            insert(row)
        for c in range(3):
            lists[c] = sorted(lists[c], key=lambda e: e[0])[:m]
        logits, _ = adapter.predict_and_adapt(batch(seed))
        np.testing.assert_allclose(logits.numpy(), np.stack([classify(row) for row in z]), rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(adapter.predict(batch(seed)).numpy(), logits.numpy(), rtol=1e-6)
    assert [int(row.isfinite().sum()) for row in adapter.entropies] == [len(entries) for entries in lists]


def test_weights_never_move():
    adapter = T3A(net())
    adapter.adapt(batch(0))
    assert all(torch.equal(a, b) for a, b in zip(adapter.model.parameters(), net().parameters(), strict=True))


def test_bad_values_and_models_are_named():
    with pytest.raises(ValueError, match=r"adapter\.filter_k=0"):
        T3A(net(), filter_k=0)
    with pytest.raises(ValueError, match="no linear classifier"):
        T3A(nn.Sequential(nn.Conv2d(1, 3, 8), nn.Flatten()))
    with pytest.raises(ValueError, match="not the output"):
        T3A(nn.Sequential(net(), nn.LayerNorm(3))).adapt(batch(0))
