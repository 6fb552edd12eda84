"""Queue and bank of embeddings against a list and a dictionary."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from ssl_suite.nn.embeddings import EMPTY, EmbeddingQueue, LabeledBank


@pytest.mark.parametrize("sizes", [(3, 3, 3), (4, 7, 2, 5), (12, 1), (25,)])
def test_queue_keeps_the_newest(sizes):
    queue, newest = EmbeddingQueue(10, 2, 3), []
    for seed, n in enumerate(sizes):
        rows = torch.randn(n, 2, generator=torch.Generator().manual_seed(seed))
        newest = [*newest, *rows.tolist()][-10:]
        queue.push(rows, rows @ torch.ones(2, 3))
        assert bool(queue.full) == (len(newest) == 10)
        kept = queue.features[: len(newest)]
        assert sorted(kept.tolist()) == sorted(newest)
        torch.testing.assert_close(queue.probs[: len(newest)], kept @ torch.ones(2, 3))


def test_neighbours_are_weighed_by_likeness():
    queue = EmbeddingQueue(2, 2, 3)
    queue.push(torch.eye(2), torch.tensor([[1.0, 0, 0], [0, 0, 1.0]]))
    share = torch.sigmoid(torch.tensor(1.0 / 0.2))
    torch.testing.assert_close(queue.neighbours(torch.eye(2)[:1], 0.2), torch.stack([share, share * 0, 1 - share])[None])


def directions(n: int, seed: int) -> torch.Tensor:
    return F.normalize(torch.randn(n, 4, generator=torch.Generator().manual_seed(seed)), dim=1)


def test_bank_finds_samples_by_their_index():
    bank, expected = LabeledBank(9, 4), {}
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


def test_empty_places_are_like_nothing():
    bank, z = LabeledBank(5, 4), directions(3, 0)
    bank.update(torch.tensor([7, 9]), z[:2], torch.tensor([1, 0]))
    near = bank.similarities(z, 0.1).softmax(1)
    torch.testing.assert_close(near[:, :2], (z @ z[:2].T / 0.1).softmax(1))
    assert near[:, 2:].abs().sum() == 0


@pytest.mark.parametrize("make", [lambda: EmbeddingQueue(0, 2, 3), lambda: LabeledBank(0, 2)])
def test_nothing_cannot_be_remembered(make):
    with pytest.raises(ValueError, match=r"model\.(queue|bank)_size must be at least 1, got 0"):
        make()
