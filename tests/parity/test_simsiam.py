"""SimSiam against algorithm 1 of the paper, written out."""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from ssl_suite.methods.pretraining.simsiam import SimSiam
from tests.parity.tiny import Tiny, gradients, pictures, views


def make() -> SimSiam:
    torch.manual_seed(0)
    return SimSiam(Tiny(), views(), hidden_dim=32, projection_dim=16, predictor_dim=8)


def distance(p: Tensor, z: Tensor) -> Tensor:
    """``D`` of algorithm 1."""
    z = z.detach()
    return -((p / p.norm(dim=1, keepdim=True)) * (z / z.norm(dim=1, keepdim=True))).sum(1).mean()


def test_value_and_gradient_equal_algorithm_1():
    method, batch = make(), pictures(8, labels=False)
    twin = copy.deepcopy(method)
    out = method.step(batch)
    out.loss.backward()
    z0, z1 = (twin.projector(twin.backbone(x)) for x in twin.views(batch, "crop", "crop"))
    p0, p1 = twin.predictor(z0), twin.predictor(z1)
    expected = distance(p0, z1) / 2 + distance(p1, z0) / 2
    expected.backward()
    torch.testing.assert_close(out.loss, expected)
    theirs = gradients(twin)
    assert set(theirs) == set(gradients(method))
    for name, grad in gradients(method).items():
        torch.testing.assert_close(grad, theirs[name], atol=1e-5, rtol=1e-4)
    spread = (z0 / z0.norm(dim=1, keepdim=True)).std(0).mean() * 4
    torch.testing.assert_close(out.logs["spread"], spread.detach())


def test_the_spread_tells_health_from_collapse():
    method = make()
    assert 0.5 < method.step(pictures(64, labels=False)).logs["spread"] < 1.1
    for p in method.projector[:-1].parameters():
        torch.nn.init.zeros_(p)
    assert method.step(pictures(64, labels=False)).logs["spread"] < 1e-3


def test_the_predictor_has_groups_of_its_own_with_a_constant_rate():
    method = make()
    constant = {id(p) for group in method.groups() if "schedule" in group for p in group["params"]}
    assert constant == {id(p) for p in method.predictor.parameters()}
    factors = {group["schedule"](step, 100) for group in method.groups() if "schedule" in group for step in (0, 50, 99)}
    assert factors == {1.0}
    assert sum(len(group["params"]) for group in method.groups()) == len([*method.parameters()])


def test_the_last_norm_has_no_scale_and_no_shift():
    assert [*make().projector[-1].parameters()] == []
    assert make().projector[-2].bias is None
    assert not make().teachers, "no momentum copy"
