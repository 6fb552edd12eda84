"""Online SHOT against information maximisation and sure own labels written out."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from ssl_suite.methods.adaptation.shot import Shot

LR, THRESHOLD, WEIGHT = 0.1, 0.45, 0.3


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))


def batch(seed: int) -> Tensor:
    return torch.randn(20, 5, generator=torch.Generator().manual_seed(seed)) * 2


def test_two_batches_equal_the_computation_by_hand():
    adapter = Shot(net(), threshold=THRESHOLD, label_weight=WEIGHT, optimizer=partial(torch.optim.SGD, lr=LR, momentum=0.9))
    model = net()
    learning = [*model[0].parameters(), *model[1].parameters()]
    optimizer = torch.optim.SGD(learning, lr=LR, momentum=0.9)
    for seed in range(2):
        x = batch(seed)
        report = adapter.adapt(x)
        p = model(x).softmax(1)  # in training mode: statistics of the batch
        each = sum(-(row * row.log()).sum() for row in p) / 20
        together = -sum(m * m.log() for m in p.mean(0))
        sure = [row for row in p if float(row.max()) > THRESHOLD]
        assert 0 < len(sure) < 20
        labels = sum(-row.max().log() for row in sure) / len(sure)
        loss = WEIGHT * labels + each - together
        assert report.loss == pytest.approx(loss.item(), rel=1e-4)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    for mine, theirs in zip(adapter.model.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(mine.detach(), theirs.detach(), rtol=1e-4, atol=1e-5)
    assert torch.equal(adapter.model[3].weight, net()[3].weight), "the classifier must stay"


def test_a_sure_and_balanced_batch_has_the_lowest_loss():
    sure = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    with torch.no_grad():
        for layer in sure:
            layer.weight.copy_(5 * torch.eye(3))
            layer.bias.zero_()
    loss = Shot(sure, stats="source").adapt(torch.eye(3).repeat(8, 1)).loss
    assert loss == pytest.approx(-math.log(3), abs=1e-4)


def test_bad_values_and_models_are_named():
    with pytest.raises(ValueError, match=r"adapter\.threshold=1\.5"):
        Shot(net(), threshold=1.5)
    with pytest.raises(ValueError, match="no parameters below"):
        Shot(nn.Sequential(nn.Flatten(), nn.Linear(5, 3)))
