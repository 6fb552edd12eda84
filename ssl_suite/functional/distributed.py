"""Collectives that carry the gradient. One process: the identity."""

from __future__ import annotations

import torch
import torch.distributed as dist
import torch.distributed.nn
from torch import Tensor


def world_size() -> int:
    """Number of processes."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Number of this process."""
    return dist.get_rank() if world_size() > 1 else 0


def gather(x: Tensor) -> Tensor:
    """Rows of all processes, (W * B, ...), in rank order, with gradient to every process's rows."""
    if world_size() == 1:
        return x
    rows = torch.cat(torch.distributed.nn.functional.all_gather(x))
    if rows.requires_grad:
        rows.register_hook(lambda grad: grad.contiguous())  # all_gather's backward misreads a transposed gradient
    return rows


def gather_together(*parts: Tensor) -> tuple[Tensor, ...]:
    """`gather` of several matrices (B, D1), (B, D2), ... of one type, in a single collective."""
    return gather(torch.cat(parts, dim=1)).split([part.shape[1] for part in parts], dim=1)


def first_row(x: Tensor) -> Tensor:
    """Row 0 of the first process, (1, ...), in every process: one draw for a whole batch."""
    return gather(x)[:1]


def sum_over_processes(x: Tensor) -> Tensor:
    """Sum over the processes, with gradient to every process's share."""
    return x if world_size() == 1 else torch.distributed.nn.functional.all_reduce(x)


def mean_over_processes(x: Tensor) -> Tensor:
    """Average of a detached tensor over the processes."""
    if world_size() == 1:
        return x
    x = x.clone()
    dist.all_reduce(x)
    return x / world_size()
