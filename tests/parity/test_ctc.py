"""The CTC loss against the sum over all alignments, and against PyTorch's own call."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
import torch.nn.functional as F

from ssl_suite.functional.ctc import ctc_loss


def spelled(alignment: tuple[int, ...]) -> list[int]:
    return [s - 1 for s, _ in itertools.groupby(alignment) if s != 0]


@pytest.mark.parametrize("target", [[0, 1], [1, 1], [0], [0, 1, 0]])
def test_sum_over_all_alignments(target: list[int]) -> None:
    torch.manual_seed(0)
    logits = torch.randn(1, 4, 3, dtype=torch.float64)
    probs = logits[0].softmax(-1)
    total = sum(math.prod(probs[t, s].item() for t, s in enumerate(path))
                for path in itertools.product(range(3), repeat=4) if spelled(path) == target)
    loss = ctc_loss(logits, torch.tensor([4]), torch.tensor([target]), torch.tensor([len(target)]))
    assert loss.item() == pytest.approx(-math.log(total), rel=1e-5)


def test_sum_over_sentences_divided_by_their_number() -> None:
    torch.manual_seed(0)
    logits = torch.randn(3, 12, 6)
    y = torch.tensor([[0, 1, 2, 3], [4, 4, -1, -1], [2, -1, -1, -1]])
    y_length, length = torch.tensor([4, 2, 1]), torch.tensor([12, 9, 5])
    log_probs = logits.log_softmax(-1).transpose(0, 1)
    each = F.ctc_loss(log_probs, (y + 1).clamp_min(0), length, y_length, blank=0, reduction="none")
    torch.testing.assert_close(ctc_loss(logits, length, y, y_length), each.sum() / 3)
    other = logits.clone()
    other[1, 9:] += 100 * torch.randn(3, 6)
    torch.testing.assert_close(ctc_loss(other, length, y, y_length), each.sum() / 3), "frames past the end count"
