"""The four losses and their updates against the paper's arithmetic written out."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor, nn

from ssl_suite.functional.adaptation import generalized_cross_entropy, hard_pseudo_label, soft_pseudo_label
from ssl_suite.methods.adaptation.self_learning import SelfLearning
from ssl_suite.methods.adaptation.tent import Tent

Q, LR, MOMENTUM = 0.8, 0.3, 0.9


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.BatchNorm1d(5), nn.Linear(5, 3)).double()


def gradient(p: Tensor, loss: str) -> Tensor:
    """Of the summed loss with respect to the logits, differentiated by hand."""
    chosen = torch.nn.functional.one_hot(p.argmax(1), p.shape[1])
    if loss == "hard":
        return p - chosen
    if loss == "rpl":
        return (p * chosen).sum(1, keepdim=True) ** Q * (p - chosen)
    if loss == "entropy":
        return -p * (p.log() - (p * p.log()).sum(1, keepdim=True))
    return torch.zeros_like(p)


@pytest.mark.parametrize("loss", ["hard", "soft", "entropy", "rpl"])
def test_two_batches_equal_the_computation_by_hand(loss: str):
    model = net()
    weight, bias = model[1].weight.detach(), model[1].bias.detach()
    gamma, beta = model[0].weight.detach().clone(), model[0].bias.detach().clone()
    speed = [torch.zeros_like(gamma), torch.zeros_like(beta)]
    adapter = SelfLearning(model, loss=loss, q=Q, optimizer=partial(torch.optim.SGD, lr=LR, momentum=MOMENTUM))
    for seed in range(2):
        x = torch.randn(20, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) * 3 + 1
        adapter.adapt(x)
        n = (x - x.mean(0)) / (x.var(0, unbiased=False) + model[0].eps).sqrt()
        p = ((n * gamma + beta) @ weight.T + bias).softmax(1)
        grad = gradient(p, loss) / len(x) @ weight
        speed = [MOMENTUM * speed[0] + (grad * n).sum(0), MOMENTUM * speed[1] + grad.sum(0)]
        gamma, beta = gamma - LR * speed[0], beta - LR * speed[1]
    # the forward pass hands out float32 logits, hence the tolerance
    torch.testing.assert_close(adapter.model[0].weight.detach(), gamma, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(adapter.model[0].bias.detach(), beta, rtol=1e-5, atol=1e-6)


def test_losses_in_closed_form():
    logits = torch.tensor([[2.0, 0.0, -1.0], [0.1, 0.2, 0.0]], dtype=torch.float64)
    p = logits.exp() / logits.exp().sum(1, keepdim=True)
    top = p.max(1).values
    torch.testing.assert_close(hard_pseudo_label(logits), -top.log())
    torch.testing.assert_close(soft_pseudo_label(logits), -(p * p.log()).sum(1))
    torch.testing.assert_close(generalized_cross_entropy(logits, Q), (1 - top ** Q) / Q)
    torch.testing.assert_close(generalized_cross_entropy(logits, 1.0), 1 - top)
    torch.testing.assert_close(generalized_cross_entropy(logits, 1e-6), -top.log(), rtol=1e-5, atol=1e-5)


def test_entropy_is_tent():
    x, optimizer = torch.randn(20, 5, dtype=torch.float64), partial(torch.optim.Adam, lr=0.01)
    one, two = SelfLearning(net(), loss="entropy", optimizer=optimizer), Tent(net(), optimizer=optimizer)
    for _ in range(3):
        assert torch.equal(one.predict_and_adapt(x)[0], two.predict_and_adapt(x)[0])


@pytest.mark.parametrize(("key", "value"), [("q", 0.0), ("q", 1.5), ("loss", "hrad"), ("steps", 0)])
def test_bad_values_are_named(key: str, value: object):
    with pytest.raises(ValueError, match=rf"adapter\.{key}={value!r}"):
        SelfLearning(net(), **{key: value})
