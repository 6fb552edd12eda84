"""TENT moves the network towards surer predictions."""

from __future__ import annotations

from functools import partial
from itertools import pairwise

import pytest
import torch
from torch import nn

from ssl_suite.functional.adaptation import entropy
from ssl_suite.methods.adaptation.tent import Tent


def test_entropy_falls_on_a_repeated_batch():
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(6, 16), nn.LayerNorm(16), nn.ReLU(), nn.Linear(16, 4)), torch.randn(32, 6)
    adapter = Tent(model, optimizer=partial(torch.optim.SGD, lr=1.0))
    losses = [adapter.adapt(x).loss for _ in range(10)]
    assert all(after < before for before, after in pairwise(losses))


def test_logits_are_those_before_the_update():
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(6, 16), nn.LayerNorm(16), nn.Linear(16, 4)), torch.randn(32, 6)
    adapter = Tent(model, stats="source")
    assert torch.equal(adapter.predict_and_adapt(x)[0], model(x).detach())


def test_steps_must_be_positive():
    with pytest.raises(ValueError, match="steps=0"):
        Tent(nn.LayerNorm(3), steps=0)


def test_entropy_of_very_sure_rows_has_a_finite_gradient():
    logits = torch.tensor([[0.0, 1e4, -1e4]], requires_grad=True)
    entropy(logits).sum().backward()
    assert logits.grad.isfinite().all()


def test_group_norm_on_channels_last_maps_behind_frozen_layers():
    """torch's CPU kernel crashes the process here unless the gradient of the maps is asked for."""
    torch.manual_seed(0)
    conv = nn.Conv2d(2, 16, 3, padding=1).to(memory_format=torch.channels_last)
    model = nn.Sequential(conv, nn.GroupNorm(8, 16), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 3))
    x = torch.randn(16, 2, 8, 8).contiguous(memory_format=torch.channels_last)
    assert Tent(model).adapt(x).verdict == "ok"
    assert not x.requires_grad
