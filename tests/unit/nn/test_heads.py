"""Projection and prediction heads."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from ssl_suite.nn.heads import mlp


def test_layers_are_the_papers():
    assert [type(m) for m in mlp(4, 8, 2)] == [nn.Linear, nn.BatchNorm1d, nn.ReLU, nn.Linear]
    bare = mlp(4, 8, 2, norm=False, last_norm=True)
    assert [type(m) for m in bare] == [nn.Linear, nn.ReLU, nn.Linear, nn.BatchNorm1d]
    assert [m.out_features for m in mlp(4, 8, 2, layers=3) if isinstance(m, nn.Linear)] == [8, 8, 2]
    assert [type(m) for m in mlp(4, 8, 2, layers=1)] == [nn.Linear]


def test_a_bias_stands_where_no_norm_follows():
    biased = [m.bias is not None for m in mlp(4, 8, 2, last_norm=True) if isinstance(m, nn.Linear)]
    assert biased == [False, False]
    assert [m.bias is not None for m in mlp(4, 8, 2, norm=False) if isinstance(m, nn.Linear)] == [True, True]


def test_shape_and_last_norm():
    z = mlp(4, 8, 2, last_norm=True)(torch.randn(64, 4))
    assert z.shape == (64, 2)
    torch.testing.assert_close(z.mean(0), torch.zeros(2), atol=1e-5, rtol=0)


def test_no_layer_is_refused():
    with pytest.raises(ValueError, match="layers=0"):
        mlp(4, 8, 2, layers=0)
