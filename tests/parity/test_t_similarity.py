"""T-similarity against the double loop over heads, at its extremes; gradients go where they should."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from ssl_suite.methods.self_training.t_similarity import TSimilarity, t_similarity
from tests.parity.tiny import Tiny, gradients, semi, views


def make(**kwargs) -> TSimilarity:
    torch.manual_seed(0)
    return TSimilarity(Tiny(), views(), num_classes=3, **kwargs).eval()


def test_the_short_form_equals_the_double_loop():
    logits = torch.randn(5, 7, 4)
    p = logits.softmax(2)
    pairs = [p[i] * p[j] for i in range(5) for j in range(5) if i != j]
    classwise = sum(pairs) / 20
    torch.testing.assert_close(t_similarity(logits, classwise=True), classwise)
    torch.testing.assert_close(t_similarity(logits), classwise.sum(1))


def test_extremes():
    sure = 100.0 * torch.eye(4)
    torch.testing.assert_close(t_similarity(sure[[2, 2, 2]].unsqueeze(1)), torch.ones(1))  # one class, all heads
    torch.testing.assert_close(t_similarity(sure[[0, 1, 3]].unsqueeze(1)), torch.zeros(1))  # a class of its own for each
    torch.testing.assert_close(t_similarity(torch.zeros(3, 1, 4)), torch.full((1,), 0.25))  # no head knows


def test_the_loss_equals_the_formula():
    method, batch = make(heads=3, diversity=0.7), semi()
    (x,), (u,) = (method.views(batch[part], "weak") for part in ("labeled", "unlabeled"))
    y, h, g = batch["labeled"]["y"], method.backbone(x), method.backbone(u)
    weight, bias = method.ensemble.weight.view(3, 3, -1), method.ensemble.bias.view(3, 3)
    ours, others = ([z @ weight[i].T + bias[i] for i in range(3)] for z in (h, g))
    p = [z.softmax(1) for z in others]
    agreement = sum((p[i] * p[j]).sum(1).mean() for i in range(3) for j in range(3) if i != j) / 6
    expected = F.cross_entropy(method.head(h), y) + sum(F.cross_entropy(z, y) for z in ours) / 3 + 0.7 * agreement
    torch.testing.assert_close(method.step(batch).loss, expected)


def test_diversity_never_reaches_encoder_and_predicting_head():
    batch = semi()
    found = []
    for diversity in (0.0, 5.0):
        method = make(diversity=diversity)
        method.step(batch).loss.backward()
        found.append(gradients(method))
    same = {name for name, value in found[0].items() if torch.equal(value, found[1][name])}
    assert same == {name for name in found[0] if not name.startswith("ensemble")}
    assert found[0]["backbone.stem.weight"].abs().sum() > 0.0
    method = make()
    t_similarity(method.votes(method.backbone(method.views(batch["unlabeled"], "weak")[0]))).mean().backward()
    assert gradients(method).keys() == {"ensemble.weight", "ensemble.bias"}


def test_more_diversity_lowers_the_agreement():
    batch, agreements = semi(), []
    for diversity in (0.0, 3.0):
        method = make(diversity=diversity).train()
        optimizer = torch.optim.Adam(method.parameters(), 1e-2)
        for _ in range(60):
            optimizer.zero_grad()
            method.step(batch).loss.backward()
            optimizer.step()
        agreements.append(method.step(batch).logs["agreement"])
    assert agreements[1] < 0.7 * agreements[0]
    assert method.step(batch).logs["heads_accuracy"] > 0.9  # and they still fit the labels


def test_confidence_is_that_of_clean_samples():
    method, batch = make(), semi()["labeled"]
    h = method.backbone(method.views(batch, "clean")[0])
    torch.testing.assert_close(method.confidence(batch), t_similarity(method.votes(h)))
    torch.testing.assert_close(method.logits(batch), method.head(h))
    total, count = method.score(batch)["agreement"]
    torch.testing.assert_close(total, method.confidence(batch).sum())
    assert count == 6


def test_one_head_is_refused():
    with pytest.raises(ValueError, match="at least 2 heads"):
        make(heads=1)
