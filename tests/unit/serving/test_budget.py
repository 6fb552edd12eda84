"""Time and memory of updates are kept below limits by leaving updates out."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from ssl_suite.serving.budget import LONGEST_PAUSE, Budget
from tests.unit.serving.nets import samples


def skipped(budget: Budget) -> int:
    """Batches that are only predicted until an update is let through."""
    count, x = 0, samples(n=1)
    while budget.refuses(x):
        count += 1
    return count


def test_without_limits_nothing_is_refused():
    budget = Budget()
    budget.spent(1e9)
    assert not budget.refuses(samples())


def test_a_slow_update_is_made_up_for():
    budget = Budget(max_ms=10.0)
    budget.spent(10.0)
    assert skipped(budget) == 0
    budget.spent(35.0)
    assert "max_ms=10" in budget.refuses(samples())
    assert 35.0 / (2 + skipped(budget)) <= 10.0, "the mean over the update and the batches after it"


def test_one_slow_update_after_another_is_tried_less_and_less():
    budget, pauses = Budget(max_ms=10.0), []
    for _ in range(200):
        budget.spent(20.0)
        pauses.append(skipped(budget))
    assert pauses[:3] == [2, 4, 8]
    assert pauses[-1] == LONGEST_PAUSE
    budget.spent(5.0)
    assert skipped(budget) == 0
    budget.spent(20.0)
    assert skipped(budget) == 2, "a fast update ends the row"


def test_memory_is_counted_and_large_batches_refused():
    net = nn.Sequential(nn.Linear(1000, 1000), nn.Sigmoid(), nn.Linear(1000, 10))
    budget, x = Budget(max_mib=1.0), torch.randn(16, 1000)
    with budget.measured(x, net.parameters()):
        net(x).sum().backward()
    kept = 16 * 1000 * 4 * 2 / 2**20  # x for the first layer, sigmoid's output for itself and for the last
    assert budget.mib_per_sample[(1000,)] * 16 == pytest.approx(kept, rel=0.01), "weights are not counted"
    assert not budget.refuses(torch.randn(100, 1000))
    assert "max_mib=1" in budget.refuses(torch.randn(200, 1000))
    assert not budget.refuses(torch.randn(200, 500)), "another shape of sample is counted by itself"


def test_memory_is_the_most_at_a_time():
    net, budget, x = nn.Sequential(nn.Linear(100, 1000), nn.Sigmoid()), Budget(max_mib=1.0), torch.randn(8, 100)
    with budget.measured(x, net.parameters()):
        for _ in range(5):
            net(x).sum().backward()
    assert budget.mib_per_sample[(100,)] * 8 == pytest.approx((8 * 100 + 8 * 1000) * 4 / 2**20, rel=0.01)


@pytest.mark.parametrize("limits", [{"max_ms": 0.0}, {"max_mib": -1.0}, {"max_ms": float("nan")}])
def test_bad_limits(limits):
    with pytest.raises(ValueError, match=f"budget.{next(iter(limits))}"):
        Budget(**limits)
