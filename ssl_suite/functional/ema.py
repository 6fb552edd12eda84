"""Exponential moving averages of weights."""

from __future__ import annotations

import copy
import math
from typing import TypeVar

import torch
from torch import nn

M = TypeVar("M", bound=nn.Module)


def make_teacher(student: M) -> M:
    """A deep copy that shares no storage with the student and takes no gradient."""
    return copy.deepcopy(student).requires_grad_(False)


@torch.no_grad()
def update_teacher(teacher: nn.Module, student: nn.Module, momentum: float) -> None:
    """Move the teacher's parameters towards the student's: t <- momentum * t + (1 - momentum) * s; buffers are copied.

    Args:
        teacher: made by `make_teacher`.
        student: the trained network.
        momentum: share of the old teacher that stays, in [0, 1].
    """
    torch._foreach_lerp_(list(teacher.parameters()), list(student.parameters()), 1.0 - momentum)
    for old, new in zip(teacher.buffers(), student.buffers(), strict=True):
        old.copy_(new)


def cosine_momentum(base: float, step: int, total: int) -> float:
    """Momentum that rises from ``base`` to 1 along half a cosine (BYOL, arXiv 2006.07733, section 3.2)."""
    return 1.0 - (1.0 - base) * (math.cos(math.pi * min(step, total) / max(total, 1)) + 1.0) / 2.0


def ramp(first: float, last: float, done: float) -> float:
    """A number on its way from ``first`` to ``last`` in a line; ``done`` is the share of the way, 1 and above its end.

    The momentum of I-JEPA and data2vec and the teacher's temperature of DINO rise like that.
    """
    return first + (last - first) * min(done, 1.0)
