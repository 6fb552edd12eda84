"""How much a class depends on when a sample came, against the definition written out."""

from __future__ import annotations

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


def least(blocks: np.ndarray) -> list[float]:
    cuts = [0, *range(2, len(blocks) - 1)]
    return [(c * information(blocks[:c]) + (len(blocks) - c) * information(blocks[c:])) / len(blocks) for c in cuts]


@pytest.mark.parametrize("blocks", [2, 3, 4, 5, 16])
@pytest.mark.parametrize("sure", [True, False])
def test_dependence_is_its_definition(blocks, sure):
    generator = torch.Generator().manual_seed(blocks)
    probs = (100.0 if sure else 2.0) * torch.randn(blocks * 8 + 3, 5, generator=generator)
    probs = probs.softmax(1)
    kept = probs[3:].double().numpy()
    in_time, dealt = kept.reshape(blocks, 8, 5).mean(1), kept.reshape(8, blocks, 5).mean(0)
    expected = min(a - b for a, b in zip(least(in_time), least(dealt), strict=True))
    assert float(dependence(probs, 8)) == pytest.approx(expected, abs=1e-5)


def test_sorted_shuffled_and_changed_once():
    classes = torch.arange(4).repeat_interleave(64)
    eye = torch.eye(4)
    shuffled = eye[classes[torch.randperm(256, generator=torch.Generator().manual_seed(0))]]
    assert float(dependence(eye[classes], 32)) > 0.5
    assert abs(float(dependence(shuffled, 32))) < 0.1
    once = eye[torch.cat([torch.zeros(128, dtype=torch.int64), torch.full((128,), 3)])]
    assert float(dependence(once, 32)) == pytest.approx(0.0, abs=1e-5)
    assert float(dependence(shuffled[:63], 32)) == 0.0
