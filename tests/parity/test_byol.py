from __future__ import annotations

import copy
import math

import pytest
import torch

from ssl_suite.methods.pretraining.byol import BYOL
from tests.parity.tiny import Tiny, gradients, pictures, views


def make(**kwargs) -> BYOL:
    torch.manual_seed(0)
    return BYOL(Tiny(), views(), hidden_dim=32, projection_dim=8, **kwargs)


def test_value_and_gradient_equal_equations_2_and_3():
    method, batch = make(), pictures(8, labels=False)
    with torch.no_grad():
        method.teacher_projector[0].weight.mul_(-0.5)  # a teacher unlike the student
    twin = copy.deepcopy(method)
    loss = method.step(batch).loss
    loss.backward()
    expected = torch.zeros(())
    v0, v1 = twin.views(batch, "crop", "crop")
    for own, other in ((v0, v1), (v1, v0)):
        q = twin.predictor(twin.projector(twin.backbone(own)))
        z = twin.teacher_projector(twin.teacher_backbone(other)).detach()
        q, z = q / q.norm(dim=1, keepdim=True), z / z.norm(dim=1, keepdim=True)
        expected = expected + (q - z).square().sum(1).mean()
    expected.backward()
    torch.testing.assert_close(loss, expected)
    theirs = gradients(twin)
    assert set(theirs) == set(gradients(method))
    for name, grad in gradients(method).items():
        torch.testing.assert_close(grad, theirs[name], atol=1e-5, rtol=1e-4)


def test_gradient_reaches_the_student_and_never_the_teacher():
    method, batch = make(), pictures(8)
    out = method.step(batch)
    out.loss.backward()
    student = [method.backbone, method.projector, method.predictor]
    assert all(p.grad is not None for module in student for p in module.parameters())
    assert all(p.grad is None and not p.requires_grad for module in (method.teacher_backbone, method.teacher_projector)
               for p in module.parameters())
    assert out.features.shape == (8, 16)


def test_labels_are_not_used():
    assert torch.equal(make().step(pictures(8)).loss, make().step(pictures(8, labels=False)).loss)


def test_momentum_rises_to_one_along_a_cosine():
    method = make(momentum=0.9)
    assert [method.momentum(t, 100) for t in (0, 50, 100)] == pytest.approx([0.9, 0.95, 1.0])
    assert method.momentum(25, 100) == pytest.approx(1 - 0.1 * (math.cos(math.pi / 4) + 1) / 2)


def test_loss_is_zero_where_predictions_meet_and_eight_where_they_oppose():
    method = make()
    z = torch.randn(4, 8)
    for sign, value in ((1.0, 0.0), (-1.0, 8.0)):
        assert 4.0 + 2.0 * (2 * method.criterion(sign * z, z)) == pytest.approx(value, abs=1e-5)


def test_no_direction_outgrows_the_others_behind_the_norm_of_the_projection():
    for norm, rank_one in ((False, True), (True, False)):
        method = make(projection_norm=norm)
        with torch.no_grad():
            next(m for m in reversed(method.projector) if isinstance(m, torch.nn.Linear)).weight[0].mul_(1e3)
        variance = method.projector(method.backbone(method.views(pictures(64, labels=False), "crop")[0])).var(0)
        assert bool(variance[0] > 1e4 * variance[1:].max()) == rank_one
    assert method.teacher_projector[-1].num_features == 8
