"""CoTTA against its student, teacher and restored weights written out."""

from __future__ import annotations

import copy
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from ssl_suite.functional.random import Draw, sample_keys
from ssl_suite.methods.adaptation.cotta import RESTORE_STREAM, CoTTA
from ssl_suite.views import Views

LR, M, SEED = 0.1, 0.9, 4


class Noise:
    def __call__(self, x: Tensor, draw: Draw, length: Tensor | None) -> Tensor:
        return x + 0.5 * draw.normal(*x.shape[1:])


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 8), nn.LayerNorm(8), nn.ReLU(), nn.Linear(8, 3))


def batch(seed: int) -> Tensor:
    return torch.randn(20, 5, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("confidence", [0.0, 1.0])
@pytest.mark.parametrize("restore", [0.0, 0.3])
def test_two_batches_equal_the_computation_by_hand(confidence: float, restore: float):
    """With threshold 0 the plain teacher is the target, with 1 the mean over views."""
    views = Views({"weak": [Noise()]})
    adapter = CoTTA(net(), views=views, num_augmentations=3, confidence=confidence, momentum_teacher=M, seed=SEED,
                    restore_prob=restore, optimizer=partial(torch.optim.SGD, lr=LR))
    student, teacher, source = net(), net(), net()
    count = 0
    for seed in range(2):
        x, index = batch(seed), torch.arange(20) + 100 * seed
        target = teacher(x).detach()
        if confidence == 1.0:
            copies = [x + 0.5 * Draw(sample_keys(SEED, torch.zeros_like(index), index, i)).normal(5) for i in range(3)]
            target = torch.stack([teacher(c).detach() for c in copies]).mean(0)
        z = student(x)
        loss = -(target.softmax(1) * z.log_softmax(1)).sum(1).mean()
        student.zero_grad()
        loss.backward()
        draw = Draw(sample_keys(SEED, torch.tensor([count]), torch.tensor([0]), RESTORE_STREAM))
        with torch.no_grad():
            for s, t, o in zip(student.parameters(), teacher.parameters(), source.parameters(), strict=True):
                s -= LR * s.grad
                t.copy_(M * t + (1 - M) * s)
                back = draw.uniform(*s.shape)[0] < restore
                s.copy_(torch.where(back, o, s))
        logits, report = adapter.predict_and_adapt(x, index=index)
        count += len(x)
        torch.testing.assert_close(logits, target)
        assert report.loss == pytest.approx(loss.item(), rel=1e-5)
    for mine, theirs in zip(adapter.model.parameters(), student.parameters(), strict=True):
        torch.testing.assert_close(mine.detach(), theirs.detach())
    torch.testing.assert_close(adapter.predict(batch(9)), teacher(batch(9)).detach())
    moved = [not torch.equal(a, b) for a, b in zip(student.parameters(), source.parameters(), strict=True)]
    assert any(moved)


def test_the_share_of_restored_weights():
    adapter = CoTTA(nn.Sequential(nn.Linear(100, 100), nn.LayerNorm(100)), restore_prob=0.01)
    source = copy.deepcopy(adapter.model)
    with torch.no_grad():
        for p in adapter.learning:
            p.add_(1.0)
    adapter.restore_some()
    share = (adapter.model[0].weight == source[0].weight).float().mean().item()
    assert share == pytest.approx(0.01, abs=0.003)


@pytest.mark.parametrize(("key", "value"), [("restore_prob", 1.5), ("momentum_teacher", -0.1), ("num_augmentations", 0)])
def test_bad_values_are_named(key: str, value: float):
    with pytest.raises(ValueError, match=rf"adapter\.{key}={value}"):
        CoTTA(net(), **{key: value})
