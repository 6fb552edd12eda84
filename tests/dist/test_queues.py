"""Queues on two processes: the rows, the codes and the loss of one process on the whole batch."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from ssl_suite.methods.pretraining.swav import SwAV
from ssl_suite.nn.memory import Queue
from tests.dist.pair import Pair
from tests.parity.test_swav import AnySize, small_and_large
from tests.parity.tiny import pictures

pytestmark = pytest.mark.dist


def played(rank: int = 0, world: int = 1) -> tuple[Tensor, Tensor]:
    """Rows of a queue after three pushes of one share, and its place."""
    torch.manual_seed(0)
    queue = Queue(20, 3)
    for step in range(3):
        whole = torch.arange(8 * step, 8 * step + 8).float()[:, None].expand(-1, 3)
        queue.push(whole.chunk(world)[rank])
    return queue.rows, queue.position


def swav(rank: int = 0, world: int = 1) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss and gradients of the second step, when the queue takes part in the codes, averaged over the processes."""
    torch.manual_seed(0)
    method = SwAV(AnySize(), small_and_large(), local_crops=1, num_prototypes=5, hidden_dim=16, projection_dim=8, queue_size=7,
                  queue_start=0.5)
    for norm in (method.backbone.norm, method.projector[1]):
        norm.eval()
    losses = []
    for step in range(2):
        method.progress = step / 2
        batch = {key: value.chunk(world)[rank] for key, value in pictures(8, 8 * step, labels=False).items()}
        method.zero_grad()
        losses.append(method.step(batch).loss)
        losses[-1].backward()
    figures = {"loss": losses[1].detach(), **{n: p.grad for n, p in method.named_parameters() if p.grad is not None}}
    for value in figures.values() if world > 1 else ():
        dist.all_reduce(value)
        value /= world
    return method.queue.rows, figures


def share(function: str) -> tuple[Tensor, Tensor | dict[str, Tensor]]:
    """The body of a process."""
    return {"played": played, "swav": swav}[function](dist.get_rank(), dist.get_world_size())


def test_a_queue_takes_in_the_rows_of_all(pair: Pair) -> None:
    rows, position = played()
    for theirs, place in pair(share, "played"):
        assert torch.equal(theirs, rows)
        assert torch.equal(place, position)


def test_swav_with_a_queue(pair: Pair) -> None:
    rows, figures = swav()
    for theirs, others in pair(share, "swav"):
        torch.testing.assert_close(theirs, rows)
        assert others.keys() == figures.keys()
        for name, value in figures.items():
            torch.testing.assert_close(others[name], value, rtol=1e-4, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}")
