"""Queue and bank on two processes: losses over steps, and what is remembered, are those of one process on all rows."""

from __future__ import annotations

from functools import partial

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from ssl_suite.batch import Batch
from ssl_suite.method import Method
from tests.dist.pair import Pair
from tests.parity import test_comatch, test_simmatch

pytestmark = pytest.mark.dist
MAKE = {"comatch": partial(test_comatch.make, queue_size=36), "simmatch": test_simmatch.make}


def part(batch: Batch, rank: int, world: int) -> Batch:
    return {half: {key: rows.chunk(world)[rank] for key, rows in values.items()} for half, values in batch.items()}


def played(name: str, rank: int = 0, world: int = 1) -> tuple[list[float], dict[str, Tensor]]:
    """Losses of four steps on a share of the rows, and the buffers."""
    method: Method = MAKE[name]()
    for norm in (method.backbone.norm, method.ema_backbone.norm):
        norm.eval()  # over two processes that is SyncBatchNorm's business
    losses = [float(method.step(part(test_comatch.batch_of(i), rank, world)).loss.detach()) for i in range(4)]
    return losses, {key: value for key, value in method.named_buffers() if key.startswith(("queue", "bank.", "align."))}


def share(name: str) -> tuple[list[float], dict[str, Tensor]]:
    """The body of a process."""
    return played(name, dist.get_rank(), dist.get_world_size())


@pytest.mark.parametrize("name", MAKE)
def test_two_processes_equal_one(name: str, pair: Pair) -> None:
    losses, buffers = played(name)
    first, second = pair(share, name)
    means = [(a + b) / 2 for a, b in zip(first[0], second[0], strict=True)]
    assert means == pytest.approx(losses, rel=1e-4)
    assert len(buffers) >= 6
    for key, value in buffers.items():
        assert torch.equal(first[1][key], second[1][key]), key
        mine, theirs = (rows[rows[:, 0].argsort()] if key == "queue.rows" else rows for rows in (value, first[1][key]))
        torch.testing.assert_close(theirs, mine, rtol=1e-4, atol=1e-5, msg=lambda m, k=key: f"{k}: {m}")

