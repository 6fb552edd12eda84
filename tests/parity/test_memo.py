"""MEMO against its step per sample written out."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor, nn

from ssl_suite.functional.random import Draw, sample_keys
from ssl_suite.methods.adaptation.memo import Memo, marginal_entropy
from ssl_suite.views import Views

LR, N, SEED, ALPHA = 0.5, 4, 5, 0.2


class Noise:
    def __call__(self, x: Tensor, draw: Draw, length: Tensor | None) -> Tensor:
        return x + 0.5 * draw.normal(*x.shape[1:])


def net(norm: str) -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8) if norm == "batch" else nn.LayerNorm(8), nn.Linear(8, 3))
    if norm == "batch":
        model[1].running_mean.normal_()
        model[1].running_var.uniform_(0.5, 2.0)
    return model


def forward(model: nn.Module, x: Tensor) -> Tensor:
    h = model[0](x)
    if isinstance(model[1], nn.BatchNorm1d):
        mean = (1 - ALPHA) * model[1].running_mean + ALPHA * h.mean(0)
        var = (1 - ALPHA) * model[1].running_var + ALPHA * h.var(0, unbiased=False)
        h = (h - mean) / (var + model[1].eps).sqrt() * model[1].weight + model[1].bias
    else:
        h = model[1](h)
    return model[2](h)


@pytest.mark.parametrize("norm", ["layer", "batch"])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_two_batches_equal_the_computation_by_hand(norm: str, momentum: float):
    """Every sample starts from the source model, whatever came before."""
    adapter = Memo(net(norm), views=Views({"weak": [Noise()]}), num_augmentations=N, steps=2, alpha=ALPHA, seed=SEED,
                   optimizer=partial(torch.optim.SGD, lr=LR, momentum=momentum))
    for seed in range(2):
        x, index = torch.randn(3, 5, generator=torch.Generator().manual_seed(seed)), torch.tensor([4, 9, 2])
        logits, report = adapter.predict_and_adapt(x, index=index)
        losses = []
        for i in range(3):
            model = net(norm)
            optimizer = torch.optim.SGD(model.parameters(), lr=LR, momentum=momentum)
            for step in range(2):
                draw = Draw(sample_keys(SEED, torch.tensor([step]), index[i:i + 1])).copies(N)
                p = forward(model, x[i].expand(N, -1) + 0.5 * draw.normal(5)).softmax(1).mean(0)
                loss = -(p * p.log()).sum()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            losses.append(loss.item())
            torch.testing.assert_close(logits[i], forward(model, x[i:i + 1])[0].detach(), rtol=1e-4, atol=1e-4)
        assert report.loss == pytest.approx(sum(losses) / 3, rel=1e-4)
    source = net(norm)
    assert all(torch.equal(a, b) for a, b in zip(adapter.model.parameters(), source.parameters(), strict=True))
    assert not adapter.optimizer.state_dict()["state"]


def test_marginal_entropy_in_closed_form():
    logits = torch.randn(6, 4, dtype=torch.float64) * 3
    p = logits.softmax(1).mean(0)
    torch.testing.assert_close(marginal_entropy(logits), -(p * p.log()).sum())


@pytest.mark.parametrize(("key", "value"), [("steps", 0), ("num_augmentations", 0), ("alpha", 1.5)])
def test_bad_values_are_named(key: str, value: float):
    with pytest.raises(ValueError, match=rf"adapter\.{key}={value}"):
        Memo(net("batch"), **{key: value})
