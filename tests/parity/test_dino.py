"""DINO against its equations written out, against lightly's loss and head, and the traps of its family."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from lightly.loss import DINOLoss
from lightly.models.modules.heads import DINOProjectionHead

from ssl_suite.functional.multicrop import swapped_prediction
from ssl_suite.methods.pretraining.dino import DINO
from ssl_suite.nn.centre import Centre
from ssl_suite.nn.heads import PrototypeHead
from ssl_suite.views import Views
from tests.parity.tiny import Noise, Tiny, gradients, pictures


def crops() -> Views:
    return Views({"crop": [Noise(0.3)], "local": [Noise(0.6)]})


def make(**options: Any) -> DINO:
    torch.manual_seed(0)
    small = {"local_crops": 2, "num_prototypes": 12, "hidden_dim": 16, "bottleneck_dim": 8, "centre_momentum": 0.9}
    method = DINO(Tiny(), crops(), **{**small, **options})
    with torch.no_grad():
        for p in [*method.teacher_head.parameters(), *method.teacher_backbone.parameters()]:
            p.add_(0.1 * torch.randn_like(p))  # a teacher unlike the student
        method.centre.value.normal_(std=0.1)
    return method


def cosines(head: PrototypeHead, h: torch.Tensor) -> torch.Tensor:
    z, c = head.body(h), head.prototypes.weight
    return (z / z.norm(dim=1, keepdim=True)) @ (c / c.norm(dim=1, keepdim=True)).T


def test_value_gradient_and_centre_are_those_of_the_equations() -> None:
    method, batch = make(), pictures(6, labels=False)
    twin = copy.deepcopy(method)
    loss = method.step(batch).loss
    loss.backward()
    views = twin.views(batch, "crop", "crop", "local", "local")
    h = twin.backbone(torch.cat(views))
    student = [cosines(twin.head, part) for part in h.chunk(4)]
    with torch.no_grad():
        teacher = [cosines(twin.teacher_head, part) for part in twin.teacher_backbone(torch.cat(views[:2])).chunk(2)]
    total, pairs = torch.zeros(()), 0
    for i, t in enumerate(teacher):
        p = ((t - twin.centre.value) / 0.04).exp()
        p = p / p.sum(1, keepdim=True)
        for j, s in enumerate(student):
            if i != j:
                q = (s / 0.1).exp()
                total = total - (p * (q / q.sum(1, keepdim=True)).log()).sum(1).mean()
                pairs += 1
    (total / pairs).backward()
    torch.testing.assert_close(loss, total / pairs)
    theirs = gradients(twin)
    assert theirs.keys() == gradients(method).keys()
    for name, grad in gradients(method).items():
        torch.testing.assert_close(grad, theirs[name], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(method.centre.value, 0.9 * twin.centre.value + 0.1 * torch.cat(teacher).mean(0))


def test_loss_and_centre_are_lightlys() -> None:
    torch.manual_seed(0)
    teacher, student = [torch.randn(5, 12) for _ in range(2)], [torch.randn(5, 12) for _ in range(6)]
    theirs, centre = DINOLoss(12, teacher_temp=0.05), Centre(12)
    for _ in range(3):
        expected = theirs(teacher, student)
        torch.testing.assert_close(swapped_prediction(student, list(centre(torch.stack(teacher), 0.05)), 0.1), expected)
        torch.testing.assert_close(centre.value, theirs.center.flatten())


def test_the_head_is_lightlys() -> None:
    mine, theirs = PrototypeHead(6, 10, 4, 7), DINOProjectionHead(6, 10, 4, 7)
    for own, other in zip((m for m in mine.body if isinstance(m, torch.nn.Linear)),
                          (m for m in theirs.layers if isinstance(m, torch.nn.Linear)), strict=True):
        own.load_state_dict(other.state_dict())
    with torch.no_grad():
        mine.prototypes.weight.copy_(3.0 * theirs.last_layer.weight_v)
    h = torch.randn(5, 6)
    torch.testing.assert_close(mine(h), theirs(h))
    copy.deepcopy(mine)


def test_small_crops_reach_the_student_only() -> None:
    method, batch = make(), pictures(4)
    seen: list[int] = []
    method.teacher_backbone.register_forward_hook(lambda m, x, h: seen.append(len(x[0])))
    method.step(batch)
    assert seen == [8]


def test_the_last_layer_rests_at_first_by_a_rate_of_zero() -> None:
    method = make(frozen=0.1)
    *rest, last = method.groups()
    assert [p is method.head.prototypes.weight for p in last["params"]] == [True]
    assert [last["schedule"](step, 100) for step in (0, 9)] == [0.0, 0.0]
    assert last["schedule"](50, 100) == method.schedule(50, 100) > 0
    assert all("schedule" not in group for group in rest)
    method.step(pictures(4)).loss.backward()
    assert method.head.prototypes.weight.grad is not None, "its gradient is not deleted"


def test_the_teacher_is_judged_and_shares_nothing() -> None:
    method = DINO(Tiny(), crops(), num_prototypes=12, hidden_dim=16, bottleneck_dim=8)
    assert method.encoder is method.teacher_backbone
    for teacher, student in method.teachers.items():
        pairs = zip(getattr(method, teacher).parameters(), getattr(method, student).parameters(), strict=True)
        assert all(torch.equal(t, s) and t.untyped_storage().data_ptr() != s.untyped_storage().data_ptr() for t, s in pairs)


def test_the_teachers_temperature_warms_up() -> None:
    method, batch = make(teacher_temperature=(0.04, 0.4), warmup=0.5), pictures(6)
    entropies = []
    for progress in (0.0, 0.25, 0.5, 0.9):
        method.progress = progress
        method.eval()
        entropies.append(method.step(batch).logs["target_entropy"])
    assert entropies[0] < entropies[1] < entropies[2] == entropies[3]


def test_bfloat16_leaves_the_loss_in_float32() -> None:
    method = make()
    with torch.autocast("cpu", torch.bfloat16):
        scores = method.head(torch.randn(3, 16))
        assert scores.dtype == torch.float32
        assert method.step(pictures(4)).loss.dtype == torch.float32


def test_a_temperature_of_zero_is_named() -> None:
    with pytest.raises(ValueError, match="temperature"):
        make(temperature=0.0)
