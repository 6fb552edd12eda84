"""MoCo v2 against equations 1 and 2 of MoCo, written out."""

from __future__ import annotations

import copy

import pytest
import torch

from ssl_suite.methods.pretraining.moco_v2 import MoCoV2
from tests.parity.tiny import Tiny, gradients, pictures, views


def make(**kwargs) -> MoCoV2:
    torch.manual_seed(0)
    return MoCoV2(Tiny(), views(), hidden_dim=32, projection_dim=8, **{"queue_size": 20, **kwargs})


def test_value_and_gradient_equal_equation_1():
    method, batch = make(temperature=0.3), pictures(6, labels=False)
    with torch.no_grad():
        method.teacher_projector[0].weight.mul_(-0.5)  # a teacher unlike the student
    twin = copy.deepcopy(method)
    loss = method.step(batch).loss
    loss.backward()
    x_q, x_k = twin.views(batch, "crop", "crop")
    q, k = twin.projector(twin.backbone(x_q)), twin.teacher_projector(twin.teacher_backbone(x_k)).detach()
    q, k = q / q.norm(dim=1, keepdim=True), k / k.norm(dim=1, keepdim=True)
    expected = torch.zeros(())
    for i in range(6):
        own = torch.exp(q[i] @ k[i] / 0.3)
        expected = expected - torch.log(own / (own + sum(torch.exp(q[i] @ old / 0.3) for old in twin.queue.rows))) / 6
    expected.backward()
    torch.testing.assert_close(loss, expected)
    theirs = gradients(twin)
    assert set(theirs) == set(gradients(method))
    for name, grad in gradients(method).items():
        torch.testing.assert_close(grad, theirs[name], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(method.queue.rows[:6], k)
    torch.testing.assert_close(method.queue.rows[6:], twin.queue.rows[6:])


def test_the_loss_falls_against_a_queue_that_stands_still():
    method, batch = make(), pictures(12, labels=False)
    optimizer, queue = torch.optim.Adam(method.backbone.parameters(), lr=1e-2), method.queue.rows.clone()
    losses = []
    for _ in range(15):
        method.queue.rows = queue
        optimizer.zero_grad()
        loss = method.step(batch).loss
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]


def test_the_momentum_stays():
    method = make(momentum=0.9)
    assert {method.momentum(step, 100) for step in (0, 50, 100)} == {0.9}


def test_bad_values_are_refused():
    with pytest.raises(ValueError, match="queue_size=0"):
        make(queue_size=0)
    with pytest.raises(ValueError, match="temperature=-1"):
        make(temperature=-1.0)
