from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F

from ssl_suite.methods.self_training.defixmatch import DeFixMatch
from tests.parity.tiny import Tiny, gradients, semi, views


def make(**kwargs) -> DeFixMatch:
    torch.manual_seed(0)
    method = DeFixMatch(Tiny(), views(weak=0.3, strong=1.0), num_classes=3, **kwargs)
    with torch.no_grad():
        method.head.weight.mul_(5.0)  # confidences on both sides of the threshold
    return method


def believed(weak: torch.Tensor, strong: torch.Tensor, threshold: float) -> torch.Tensor:
    """The pseudo-label loss, sample by sample."""
    total = torch.zeros(())
    for p, log_p in zip(weak.detach().softmax(1), strong.log_softmax(1), strict=True):
        if p.max() >= threshold:
            total = total - log_p[p.argmax()]
    return total / len(weak)


def test_value_and_gradient_equal_the_formula():
    method, batch = make(threshold=0.5, lambda_u=0.7), semi()
    twin = copy.deepcopy(method)
    out = method.step(batch)
    out.loss.backward()

    rows = [*twin.views(batch["labeled"], "weak", "strong"), *twin.views(batch["unlabeled"], "weak", "strong")]
    weak_l, strong_l, weak_u, strong_u = twin.head(twin.backbone(torch.cat(rows))).split([6, 6, 12, 12])
    y = batch["labeled"]["y"]
    bias = believed(weak_l, strong_l, 0.5)
    expected = ((F.cross_entropy(weak_l, y) + F.cross_entropy(strong_l, y)) / 2
                + 0.7 * (believed(weak_u, strong_u, 0.5) - bias))
    expected.backward()
    assert bias > 0.0
    torch.testing.assert_close(out.loss, expected)
    torch.testing.assert_close(out.logs["loss_bias"], bias.detach())
    theirs = gradients(twin)
    for name, grad in gradients(method).items():
        torch.testing.assert_close(grad, theirs[name], atol=1e-6, rtol=1e-4)


def test_labelled_samples_that_are_also_the_unlabelled_ones_cancel():
    method, batch = make(threshold=0.0), semi(6, 6)
    batch["unlabeled"] = {key: value for key, value in batch["labeled"].items() if key != "y"}
    out = method.step(batch)
    torch.testing.assert_close(out.loss.detach(), out.logs["loss_sup"])
    assert out.logs["loss_unsup"] > 0.0


def test_no_gradient_reaches_the_average():
    method = make()
    method.step(semi()).loss.backward()
    assert all(p.grad is None for p in [*method.ema_backbone.parameters(), *method.ema_head.parameters()])


def test_hidden_labels_are_not_used():
    batch = semi()
    plain = make().step(batch).loss
    batch["unlabeled"]["y"] = torch.full((12,), -1)
    assert torch.equal(plain, make().step(batch).loss)


def test_threshold_is_checked():
    with pytest.raises(ValueError, match=r"policy\.threshold .* 95"):
        make(threshold=95)
