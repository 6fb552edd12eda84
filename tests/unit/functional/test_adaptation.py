"""How much a class depends on when a sample came, against the definition written out."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch

from ssl_suite.functional.adaptation import dependence


def information(blocks: np.ndarray) -> float:
    """Mutual information of block and class, both by their joint distribution (N, K)."""
    if not len(blocks):
        return 0.0
    joint = blocks / blocks.sum()
    outer = joint.sum(1, keepdims=True) * joint.sum(0, keepdims=True)
    return float(np.sum(joint * np.log(np.where(joint > 0, joint / np.where(outer > 0, outer, 1.0), 1.0))))


def stretches(count: int, first: bool = True) -> list[list[int]]:
    """Lengths into which so many blocks may be cut: at least three, two at either end, or all in one."""
    ways = [[count]] if first or count >= 2 else []
    return ways + [[n, *rest] for n in range(2 if first else 3, count - 1) for rest in stretches(count - n, first=False)]


def excess(in_time: np.ndarray, dealt: np.ndarray, lengths: list[int]) -> float:
    """What the blocks tell about the class within stretches of these lengths, less what those dealt out tell."""
    edges = np.cumsum([0, *lengths])
    parts = [(b - a) * (information(in_time[a:b]) - information(dealt[a:b])) for a, b in pairwise(edges)]
    return sum(parts) / len(in_time)


@pytest.mark.parametrize("blocks", [2, 3, 4, 5, 8, 13, 16])
@pytest.mark.parametrize("sure", [True, False])
def test_dependence_is_its_definition(blocks, sure):
    generator = torch.Generator().manual_seed(blocks)
    probs = (100.0 if sure else 2.0) * torch.randn(blocks * 8 + 3, 5, generator=generator)
    probs = probs.softmax(1)
    kept = probs[3:].double().numpy()
    in_time, dealt = kept.reshape(blocks, 8, 5).mean(1), kept.reshape(8, blocks, 5).mean(0)
    expected = min(excess(in_time, dealt, lengths) for lengths in stretches(blocks))
    assert dependence(probs, 8) == pytest.approx(expected, abs=1e-5)


def test_sorted_shuffled_and_changed():
    classes = torch.arange(4).repeat_interleave(64)
    eye = torch.eye(4)
    shuffled = eye[classes[torch.randperm(256, generator=torch.Generator().manual_seed(0))]]
    assert dependence(eye[classes], 32, shortest=8) > 0.5
    assert dependence(eye[classes].repeat(2, 1), 32) > 0.2
    assert abs(dependence(shuffled, 32)) < 0.1
    once = eye[torch.cat([torch.zeros(128, dtype=torch.int64), torch.full((128,), 3)])]
    assert dependence(once, 32) == pytest.approx(0.0, abs=1e-5)
    changed = eye[torch.tensor([0, 3, 1, 0]).repeat_interleave(torch.tensor([64, 96, 128, 64]))]
    assert dependence(changed, 32) == pytest.approx(0.0, abs=1e-2)
    assert dependence(shuffled[:63], 32) == 0.0
