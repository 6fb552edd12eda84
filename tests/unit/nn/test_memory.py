"""The queue of past embeddings."""

from __future__ import annotations

import pytest
import torch

from ssl_suite.nn.memory import Queue


def rows(*values: int) -> torch.Tensor:
    return torch.tensor(values).float()[:, None].expand(-1, 2)


def test_the_oldest_rows_go_first_also_past_the_end() -> None:
    queue = Queue(5, 2)
    torch.testing.assert_close(queue.rows.norm(dim=1), torch.ones(5))
    queue.push(rows(0, 1, 2))
    queue.push(rows(3, 4, 5))
    assert queue.rows[:, 0].tolist() == [5, 1, 2, 3, 4]
    queue.push(rows(6))
    assert queue.rows[:, 0].tolist() == [5, 6, 2, 3, 4]


def test_of_more_rows_than_it_holds_the_last_stay() -> None:
    queue = Queue(3, 2)
    queue.push(rows(9))
    queue.push(rows(*range(8)))
    assert sorted(queue.rows[:, 0].tolist()) == [5, 6, 7]
    queue.push(rows(10))
    assert sorted(queue.rows[:, 0].tolist()) == [6, 7, 10]


def test_a_graph_may_hold_the_rows_that_were_there() -> None:
    queue, x = Queue(4, 2), torch.randn(3, 2, requires_grad=True)
    old = queue.rows.clone()
    loss = (x @ queue.rows.T).sum()
    queue.push(x)
    loss.backward()
    torch.testing.assert_close(x.grad, old.sum(0).expand(3, -1))
    assert not queue.rows.requires_grad


def test_rows_and_place_survive_a_checkpoint_in_float32() -> None:
    queue, twin = Queue(5, 2), Queue(5, 2)
    queue.push(rows(1, 2).bfloat16())
    twin.load_state_dict(queue.state_dict())
    for one in (queue, twin):
        one.push(rows(3, 4))
    assert torch.equal(queue.rows, twin.rows)
    assert queue.rows.dtype == torch.float32


def test_no_row_is_refused() -> None:
    with pytest.raises(ValueError, match="queue_size=0"):
        Queue(0, 2)
