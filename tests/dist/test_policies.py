"""Policies on two processes: the pseudo-labels, the memory and the penalty of one process on the whole batch."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from tests.dist.pair import Pair
from tests.parity.test_policies import ALL, STATEFUL, K, step

pytestmark = pytest.mark.dist


def played(name: str, rank: int = 0, world: int = 1) -> tuple[list[Tensor], dict[str, Tensor], float, Tensor]:
    """Four steps on one share of the rows: pseudo-labels and weights, what is remembered, penalty and its gradient."""
    policy, outcomes, weight = ALL[name](), [], torch.ones(0)
    for seed in range(4):
        given = {key: value.chunk(world)[rank] for key, value in step(seed, skew=1.0).items()}
        target, weight = policy(**given)
        outcomes += [target, weight]
    logits = torch.randn(16, K, generator=torch.Generator().manual_seed(3)).chunk(world)[rank].clone().requires_grad_()
    penalty = policy.penalty(logits, weight)
    if penalty.requires_grad:
        penalty.backward()
    grad = torch.zeros_like(logits) if logits.grad is None else logits.grad
    return outcomes, policy.state_dict(), penalty.item(), grad / world


def share(name: str) -> tuple[list[Tensor], dict[str, Tensor], float, Tensor]:
    """The body of a process."""
    return played(name, dist.get_rank(), dist.get_world_size())


@pytest.mark.parametrize("name", ALL)
def test_two_processes_equal_one(name: str, pair: Pair) -> None:
    outcomes, state, penalty, grad = played(name)
    first, second = pair(share, name)
    for whole, *halves in zip(outcomes, first[0], second[0], strict=True):
        torch.testing.assert_close(torch.cat(halves), whole, rtol=1e-5, atol=1e-6)
    for _, theirs, other, _ in (first, second):
        assert other == pytest.approx(penalty, rel=1e-5)
        for key, value in state.items():
            torch.testing.assert_close(theirs[key], value, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(torch.cat([first[3], second[3]]), grad, rtol=1e-4, atol=1e-7)
    assert bool(state) == (name in STATEFUL)
    assert (penalty != 0.0) == (name == "freematch")
