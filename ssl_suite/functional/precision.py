"""Arithmetic that must not depend on the precision of training."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Concatenate, ParamSpec

import torch
from torch import Tensor

P = ParamSpec("P")


def full_precision(function: Callable[Concatenate[Tensor, P], Tensor]) -> Callable[Concatenate[Tensor, P], Tensor]:
    """Run a function of a tensor outside autocast: matrix products of float32 tensors stay float32.

    Used for views, which would otherwise depend on the precision of training, and for losses, whose similarities and
    covariances bfloat16 rounds to three digits.
    """

    @wraps(function)
    def wrapped(x: Tensor, *args: P.args, **kwargs: P.kwargs) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            return function(x, *args, **kwargs)

    return wrapped
