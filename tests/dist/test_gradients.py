"""Loss and gradient of two processes equal those of one process on the whole batch, for every method and modality."""

from __future__ import annotations

from typing import Any
from unittest import mock

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from ssl_suite.nn.mixup import Mixup
from tests.configs import case, cases
from tests.dist.pair import Pair

pytestmark = pytest.mark.dist
SIZE = 8


def part(batch: dict[str, Any], rows: slice) -> dict[str, Any]:
    """Rows of a batch; of a mixed one, the same share of both halves."""
    if "unlabeled" in batch:
        double = slice(2 * rows.start, 2 * rows.stop)
        return {"labeled": part(batch["labeled"], rows), "unlabeled": part(batch["unlabeled"], double)}
    return {key: value[rows] for key, value in batch.items()}


def gradients(name: str, modality: str, rows: slice, alone: bool = False) -> tuple[float, dict[str, Tensor]]:
    """Loss and gradients on some rows, averaged over the processes as DDP does.

    BatchNorm stands in evaluation mode: over two processes it is SyncBatchNorm's business, which PyTorch has for GPUs
    only. Mixup keeps rows as they are: each process mixes its own. Ramps have arrived. ``alone`` makes the loss believe
    that there is one process: the control.
    """
    method = case(name, modality).build()
    for module in method.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()
        if isinstance(module, Mixup):
            module.shares.fill_(1.0)
    method.progress = 0.99
    torch.manual_seed(5)
    batch = part(case(name, modality).batch(SIZE), rows)
    with mock.patch.object(dist, "is_initialized", return_value=False) if alone else mock.MagicMock():
        loss = method.step(batch).loss
        loss.backward()
    figures = {n: p.grad for n, p in method.named_parameters() if p.grad is not None}
    total = loss.detach().double()
    if rows != slice(0, SIZE):
        for value in (total, *figures.values()):
            dist.all_reduce(value)
            value /= dist.get_world_size()
    return float(total), figures


def half(name: str, modality: str, alone: bool = False) -> tuple[float, dict[str, Tensor]]:
    """What this process sees: its half of the rows."""
    rank, size = dist.get_rank(), SIZE // dist.get_world_size()
    return gradients(name, modality, slice(rank * size, (rank + 1) * size), alone)


def differs(one: dict[str, Tensor], two: dict[str, Tensor]) -> float:
    """Largest difference of two sets of gradients, as a share of the largest gradient."""
    scale = max(float(g.abs().max()) for g in one.values())
    return max(float((one[n] - two[n]).abs().max()) for n in one) / scale


@pytest.mark.parametrize(("name", "modality"), cases())
def test_two_processes_equal_one(name: str, modality: str, pair: Pair) -> None:
    loss, whole = gradients(name, modality, slice(0, SIZE))
    for other, parts in pair(half, name, modality):
        assert other == pytest.approx(loss, rel=1e-5, abs=1e-6)
        assert parts.keys() == whole.keys()
        assert differs(whole, parts) < 1e-5


@pytest.mark.parametrize("name", ["simclr", "vicreg", "comatch"])
def test_control_without_gathering_differs(name: str, pair: Pair) -> None:
    _, whole = gradients(name, "images", slice(0, SIZE))
    for _, parts in pair(half, name, "images", True):
        assert differs(whole, parts) > 1e-2
