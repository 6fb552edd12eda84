"""TENT against the paper's arithmetic written out, and entropy against torch.distributions."""

from __future__ import annotations

from functools import partial

import torch
from torch import nn

from ssl_suite.functional.adaptation import entropy
from ssl_suite.methods.adaptation.tent import Tent


def test_entropy_equals_torch_distributions():
    logits = (5 * torch.randn(16, 7, dtype=torch.float64)).requires_grad_()
    reference = torch.distributions.Categorical(logits=logits).entropy()
    torch.testing.assert_close(entropy(logits), reference)
    one, two = (torch.autograd.grad(e.sum(), logits, retain_graph=True)[0] for e in (entropy(logits), reference))
    torch.testing.assert_close(one, two)


def test_one_step_equals_the_computation_by_hand():
    """Normalise by the batch (biased variance), differentiate -sum p log p by hand, move gamma and beta."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.BatchNorm1d(5), nn.Linear(5, 3)).double()
    x, lr = torch.randn(20, 5, dtype=torch.float64) * 3 + 1, 0.3
    weight, bias = model[1].weight.detach(), model[1].bias.detach()
    gamma, beta = model[0].weight.detach().clone(), model[0].bias.detach().clone()
    adapter = Tent(model, optimizer=partial(torch.optim.SGD, lr=lr))
    adapter.adapt(x)

    n = (x - x.mean(0)) / (x.var(0, unbiased=False) + model[0].eps).sqrt()
    p = ((n * gamma + beta) @ weight.T + bias).softmax(1)
    h = -(p * p.log()).sum(1, keepdim=True)
    grad = -p * (p.log() + h) / len(x) @ weight  # dH/dz = -p (log p + H)
    torch.testing.assert_close(adapter.model[0].weight, gamma - lr * (grad * n).sum(0))
    torch.testing.assert_close(adapter.model[0].bias, beta - lr * grad.sum(0))
