"""Gumbel quantiser: bounds of the perplexity, the straight-through gradient, float32 under autocast."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from ssl_suite.nn.quantizer import GumbelQuantizer, gumbel, perplexity


def test_perplexity_lies_between_one_entry_and_all_entries() -> None:
    assert perplexity(torch.full((2, 40), 1 / 40)).item() == pytest.approx(80.0, rel=1e-5)
    assert perplexity(F.one_hot(torch.tensor([3, 5]), 40).float()).item() == pytest.approx(2.0)


def test_choices_without_noise_are_the_largest_logits() -> None:
    quantizer = GumbelQuantizer(8, groups=2, entries=5, dim=6)
    x = torch.randn(3, 7, 8)
    out = quantizer(x)
    logits = quantizer.logits(x).view(3, 7, 2, 5)
    torch.testing.assert_close(out.codes, logits.argmax(-1))
    by_hand = torch.cat([quantizer.codebook[g][out.codes[..., g]] for g in range(2)], dim=-1)
    torch.testing.assert_close(out.vectors, by_hand)
    torch.testing.assert_close(out.probs, logits.softmax(-1))


def test_straight_through_gradient_is_that_of_the_softmax() -> None:
    torch.manual_seed(0)
    quantizer = GumbelQuantizer(8, groups=2, entries=5, dim=6)
    x, tau = torch.randn(4, 8), 0.7
    noise = gumbel(torch.rand(4, 2, 5))
    weight = torch.randn(4, 6)
    out = quantizer(x, tau, noise)
    torch.testing.assert_close(out.vectors, torch.cat([quantizer.codebook[g][out.codes[:, g]] for g in range(2)], -1))
    (got,) = torch.autograd.grad((out.vectors * weight).sum(), quantizer.logits.weight)
    soft = ((quantizer.logits(x).view(4, 2, 5) + noise) / tau).softmax(-1)
    mixed = torch.einsum("bgv,gvd->bgd", soft, quantizer.codebook.detach()).flatten(-2)
    (expected,) = torch.autograd.grad((mixed * weight).sum(), quantizer.logits.weight)
    torch.testing.assert_close(got, expected)
    assert got.abs().max() > 0


def test_choices_follow_the_softmax_of_the_logits() -> None:
    logits = torch.tensor([0.0, 1.0, 2.0])
    counts = (logits + gumbel(torch.rand(40_000, 3))).argmax(-1).bincount(minlength=3) / 40_000
    torch.testing.assert_close(counts, logits.softmax(0), atol=0.01, rtol=0)


def test_float32_under_autocast() -> None:
    quantizer = GumbelQuantizer(8, groups=2, entries=5, dim=6)
    x = torch.randn(3, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = quantizer(x, 1.0, gumbel(torch.rand(3, 2, 5)))
    assert inside.vectors.dtype == inside.probs.dtype == torch.float32


def test_width_must_divide() -> None:
    with pytest.raises(ValueError, match="divisible"):
        GumbelQuantizer(8, groups=2, dim=7)
