"""SUTA against its loss and its steps written out frame by frame."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from ssl_suite.methods.adaptation.suta import Suta, class_confusion, suta_loss

LR, ALPHA, TEMPERATURE = 0.05, 0.3, 2.5
OPTIMIZERS = {"adamw": partial(torch.optim.AdamW, lr=LR, weight_decay=0.0),
              "momentum": partial(torch.optim.SGD, lr=LR, momentum=0.9)}


class Net(nn.Module):
    """Frames of four samples, a normalised layer, scores of three symbols and the blank."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.below, self.norm, self.above = nn.Linear(4, 8), nn.LayerNorm(8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.above(self.norm(self.below(x.unflatten(1, (-1, 4)))))


def by_hand(logits: Tensor) -> Tensor:
    """The loss with loops over frames and classes; the weight of a frame is held fixed, as in the official code."""
    n, v = logits.shape
    p = (logits / TEMPERATURE).softmax(1)
    h = [-sum(p[t, k] * p[t, k].log() for k in range(v)) for t in range(n)]
    named = [h[t] for t in range(n) if int(logits[t].argmax()) != 0]
    weight = [1.0 + math.exp(-h[t].item()) for t in range(n)]
    weight = [n * w / sum(weight) for w in weight]
    confusion = torch.zeros(())
    for i in range(v):
        row = [sum(weight[t] * p[t, i] * p[t, j] for t in range(n)) for j in range(v)]
        confusion = confusion + sum(row[j] for j in range(v) if j != i) / sum(row) / v
    return ALPHA * (sum(named) / len(named) if named else 0.0) + (1.0 - ALPHA) * confusion


@pytest.mark.parametrize("blanks", [False, True])
def test_loss_and_gradient_equal_the_loops(blanks: bool) -> None:
    logits = 2.0 * torch.randn(6, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    logits[:, 0] += 9.0 * blanks
    one, two = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    loss, expected = suta_loss(one, ALPHA, TEMPERATURE), by_hand(two)
    torch.testing.assert_close(loss, expected)
    loss.backward()
    expected.backward()
    assert one.grad is not None
    torch.testing.assert_close(one.grad, two.grad)


def test_confusion_in_closed_form() -> None:
    assert class_confusion(50.0 * torch.eye(4)).item() == pytest.approx(0.0, abs=1e-6)  # every frame sure of its class
    assert class_confusion(torch.zeros(5, 4)).item() == pytest.approx(0.75)  # nothing known: 1 - 1 / V


@pytest.mark.parametrize("online", [False, True])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_two_batches_equal_the_steps_by_hand(optimizer: str, online: bool) -> None:
    adapter = Suta(Net(), steps=3, alpha=ALPHA, temperature=TEMPERATURE, frontend=False, online=online,
                   optimizer=OPTIMIZERS[optimizer])
    model = Net()
    learner = OPTIMIZERS[optimizer](model.norm.parameters())
    for seed in range(2):
        x = torch.randn(3, 24, generator=torch.Generator().manual_seed(seed))
        length = torch.tensor([24, 12, 20])
        logits, report = adapter.predict_and_adapt(x, length)
        losses = []
        for row, n, got in zip(x, length.tolist(), logits, strict=True):
            if not online:
                model = Net()
                learner = OPTIMIZERS[optimizer](model.norm.parameters())
            for _ in range(3):
                loss = by_hand(model(row[None, :n])[0])
                learner.zero_grad()
                loss.backward()
                learner.step()
            losses.append(loss.item())
            torch.testing.assert_close(got[: n // 4], model(row[None, :n])[0].detach(), rtol=1e-4, atol=1e-4)
            assert (got[n // 4 :].argmax(1) == 0).all()
        assert report.loss == pytest.approx(sum(losses) / 3, rel=1e-4)
    moved = {k for k, v in adapter.model.named_parameters() if not torch.equal(v, Net().get_parameter(k))}
    assert moved == ({"norm.weight", "norm.bias"} if online else set())
