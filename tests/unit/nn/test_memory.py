"""The queue of past embeddings, and the bank of labelled ones against a dictionary."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from ssl_suite.nn.memory import EMPTY, LabeledBank, Queue


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


def directions(n: int, seed: int) -> torch.Tensor:
    return F.normalize(torch.randn(n, 4, generator=torch.Generator().manual_seed(seed)), dim=1)


def test_bank_finds_samples_by_their_index() -> None:
    expected: dict[int, tuple[torch.Tensor, int]] = {}
    bank = LabeledBank(9, 4)
    for seed in range(12):
        index = torch.randint(0, 50, (6,), generator=torch.Generator().manual_seed(seed))
        z, labels = directions(6, seed), index % 3
        bank.update(index, z, labels)
        new = list(dict.fromkeys(i for i in index.tolist() if i not in expected))[: 9 - len(expected)]
        for i in {*new, *(set(index.tolist()) & set(expected))}:
            expected[i] = (F.normalize(z[index == i].sum(0), dim=0), i % 3)
        held = {int(i): row for row, i in enumerate(bank.index) if i != EMPTY}
        assert held.keys() == expected.keys()
        assert int(bank.count) == len(expected)
        for i, row in held.items():
            torch.testing.assert_close(bank.features[row], expected[i][0])
            assert bank.labels[row] == expected[i][1]
    assert len(expected) == 9  # it was full, and the rest left out
    assert bank.labels[-1] == EMPTY


def test_empty_places_are_like_nothing() -> None:
    bank, z = LabeledBank(5, 4), directions(3, 0)
    bank.update(torch.tensor([7, 9]), z[:2], torch.tensor([1, 0]))
    near = bank.similarities(z, 0.1).softmax(1)
    torch.testing.assert_close(near[:, :2], (z @ z[:2].T / 0.1).softmax(1))
    assert near[:, 2:].abs().sum() == 0


def test_a_bank_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match=r"model\.bank_size must be at least 1, got 0"):
        LabeledBank(0, 2)
