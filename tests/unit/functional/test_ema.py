"""Teachers."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from ssl_suite.functional.ema import cosine_momentum, make_teacher, update_teacher


def test_a_teacher_is_a_copy_that_takes_no_gradient() -> None:
    student = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    teacher = make_teacher(student)
    assert not any(p.requires_grad for p in teacher.parameters())
    assert all(p.requires_grad for p in student.parameters())
    assert not {p.data_ptr() for p in teacher.parameters()} & {p.data_ptr() for p in student.parameters()}


def test_update_is_the_formula_and_copies_buffers() -> None:
    student = nn.BatchNorm1d(3)
    teacher = make_teacher(student)
    with torch.no_grad():
        student.weight.fill_(3.0)
        student.running_mean.fill_(5.0)
        student.num_batches_tracked.fill_(9)
    update_teacher(teacher, student, 0.9)
    torch.testing.assert_close(teacher.weight, torch.full((3,), 0.9 * 1 + 0.1 * 3))
    assert torch.equal(teacher.running_mean, student.running_mean)
    assert teacher.num_batches_tracked == 9
    before = teacher.weight.clone()
    update_teacher(teacher, student, 1.0)
    assert torch.equal(teacher.weight, before)
    update_teacher(teacher, student, 0.0)
    assert torch.equal(teacher.weight, student.weight)


def test_momentum_rises_to_one() -> None:
    assert cosine_momentum(0.99, 0, 100) == pytest.approx(0.99)
    assert cosine_momentum(0.99, 50, 100) == pytest.approx(0.995)
    assert cosine_momentum(0.99, 100, 100) == cosine_momentum(0.99, 300, 100) == 1.0
