"""wav2vec 2.0 against loops written from the paper's equations."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from ssl_suite.functional.random import Draw, sample_keys
from ssl_suite.methods.pretraining.wav2vec2 import contrastive_logits, draw_distractors
from ssl_suite.nn.quantizer import perplexity


def draw(n: int) -> Draw:
    return Draw(sample_keys(0, torch.zeros(n, dtype=torch.int64), torch.arange(n), 101))


def test_contrastive_loss_is_equation_3() -> None:
    torch.manual_seed(0)
    context, targets = torch.randn(3, 9, 6, dtype=torch.float64), torch.randn(3, 9, 6, dtype=torch.float64)
    codes = torch.randint(0, 3, (3, 9, 2))
    distractors = draw_distractors(draw(3), 9, torch.tensor(9), 5)
    logits = contrastive_logits(context, targets, codes, distractors, 0.1)
    excluded = 0
    for b in range(3):
        for t in range(9):
            def score(place: int, b: int = b, t: int = t) -> float:
                return math.exp(F.cosine_similarity(context[b, t], targets[b, place], dim=0).item() / 0.1)

            others = [int(i) for i in distractors[b, t] if not torch.equal(codes[b, i], codes[b, t])]
            excluded += 5 - len(others)
            by_hand = -math.log(score(t) / (score(t) + sum(score(i) for i in others)))
            loss = F.cross_entropy(logits[b, t].double(), torch.tensor(0)).item()
            assert loss == pytest.approx(by_hand, rel=1e-4, abs=1e-5)
    assert excluded > 0, "the example must hold distractors with the target's codes"


def test_identical_candidates_cost_the_logarithm_of_their_number() -> None:
    context, targets = torch.randn(2, 7, 4), torch.randn(1, 1, 4).expand(2, 7, 4)
    codes = torch.arange(14).view(2, 7, 1)
    logits = contrastive_logits(context, targets, codes, draw_distractors(draw(2), 7, torch.tensor(7), 100), 0.1)
    loss = F.cross_entropy(logits.flatten(0, 1), torch.zeros(14, dtype=torch.int64))
    assert loss.item() == pytest.approx(math.log(101), rel=1e-5)


def test_distractors_are_the_other_places_uniformly() -> None:
    places = draw_distractors(draw(400), 6, torch.tensor(4), 50)[:, :4]
    for t in range(4):
        shares = places[:, t].flatten().bincount(minlength=6) / 20_000
        expected = torch.tensor([0.0 if i == t or i > 3 else 1 / 3 for i in range(6)])
        torch.testing.assert_close(shares, expected, atol=0.02, rtol=0)


def test_diversity_is_equation_4() -> None:
    probs = torch.rand(50, 2, 8).softmax(-1)
    by_hand = 0.0
    for group in range(2):
        mean = [probs[:, group, v].mean().item() for v in range(8)]
        by_hand += math.exp(-sum(p * math.log(p) for p in mean))
    assert perplexity(probs.mean(0)).item() == pytest.approx(by_hand, rel=1e-5)
