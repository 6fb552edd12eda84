"""BN-adapt against the blend of statistics written out."""

from __future__ import annotations

import timm.layers
import torch
from torch import Tensor, nn

from ssl_suite.methods.adaptation.bn_adapt import BatchNormAdapt


def net() -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.BatchNorm1d(5), nn.Linear(5, 3)).double()
    model[0].running_mean.normal_()
    model[0].running_var.uniform_(0.5, 2.0)
    nn.init.normal_(model[0].weight)
    return model


def by_hand(model: nn.Module, x: Tensor, mean: Tensor, var: Tensor) -> Tensor:
    normalised = (x - mean) / (var + model[0].eps).sqrt() * model[0].weight + model[0].bias
    return (normalised @ model[1].weight.T + model[1].bias).detach().float()


def test_alpha_one_is_the_batch_alone():
    model, x = net(), torch.randn(20, 5, dtype=torch.float64) * 3 + 1
    expected = by_hand(model, x, x.mean(0), x.var(0, unbiased=False))
    torch.testing.assert_close(BatchNormAdapt(model).predict_and_adapt(x)[0], expected)


def test_blend_of_source_and_batch():
    model, x, alpha = net(), torch.randn(20, 5, dtype=torch.float64) * 3 + 1, 0.3
    mean = 0.7 * model[0].running_mean + alpha * x.mean(0)
    var = 0.7 * model[0].running_var + alpha * x.var(0, unbiased=False)
    adapter = BatchNormAdapt(model, alpha=alpha)
    expected = by_hand(model, x, mean, var)
    for _ in range(2):
        torch.testing.assert_close(adapter.predict_and_adapt(x)[0], expected)
    assert torch.equal(adapter.model[0].running_mean, model[0].running_mean)


def test_tracked_blend_after_two_batches():
    model, alpha = net(), 0.2
    adapter = BatchNormAdapt(model, alpha=alpha, track=True)
    mean, var = model[0].running_mean.clone(), model[0].running_var.clone()
    for seed in range(2):
        x = torch.randn(20, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) * 3 + seed
        mean = (1 - alpha) * mean + alpha * x.mean(0)
        var = (1 - alpha) * var + alpha * x.var(0, unbiased=False)
        torch.testing.assert_close(adapter.predict_and_adapt(x)[0], by_hand(model, x, mean, var))
    torch.testing.assert_close(adapter.model[0].running_mean, mean)
    torch.testing.assert_close(adapter.model[0].running_var, var)


def test_layers_with_a_fused_activation():
    torch.manual_seed(0)
    fused = nn.Sequential(timm.layers.BatchNormAct2d(4), nn.Flatten(), nn.Linear(36, 3))
    fused[0].running_mean.normal_()
    x = torch.randn(20, 4, 3, 3)
    mean = 0.5 * fused[0].running_mean + 0.5 * x.mean((0, 2, 3))
    var = 0.5 * fused[0].running_var + 0.5 * x.var((0, 2, 3), unbiased=False)
    h = ((x - mean.view(-1, 1, 1)) / (var.view(-1, 1, 1) + fused[0].eps).sqrt()).relu()
    torch.testing.assert_close(BatchNormAdapt(fused, alpha=0.5).predict(x), fused[2](h.flatten(1)).detach())
