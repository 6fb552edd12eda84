"""W-MSE against equations 2 to 5 of the paper, written out, and against lightly."""

from __future__ import annotations

from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from lightly.loss import WMSELoss
from torch import Tensor

from ssl_suite.methods.pretraining.wmse import WMSE, whiten
from tests.configs import raw
from tests.parity.tiny import Tiny, gradients, pictures, views


def make(**kwargs) -> WMSE:
    torch.manual_seed(0)
    return WMSE(Tiny(), views(), hidden_dim=32, projection_dim=4, **kwargs)


def written_out(z0: Tensor, z1: Tensor) -> Tensor:
    """Distance of unit vectors, each view whitened by the inverse of its Cholesky factor."""
    units = []
    for z in (z0, z1):
        centred = z.double() - z.double().mean(0)
        inverse = torch.linalg.inv(torch.linalg.cholesky(centred.T @ centred / (len(z) - 1)))
        white = torch.stack([inverse @ row for row in centred])
        units.append(white / white.norm(dim=1, keepdim=True))
    return (units[0] - units[1]).square().sum(1).mean()


def test_whitened_samples_have_mean_zero_and_the_identity_as_covariance():
    torch.manual_seed(0)
    z = torch.randn(40, 6) @ torch.randn(6, 6) + 3.0
    white = whiten(z)
    torch.testing.assert_close(white.mean(0), torch.zeros(6, dtype=torch.float64), atol=1e-9, rtol=0)
    torch.testing.assert_close(white.T.cov(), torch.eye(6, dtype=torch.float64), atol=1e-9, rtol=0)
    few = z[:6]
    torch.testing.assert_close(whiten(few, shrinkage=1.0), (few - few.mean(0)).double(), atol=1e-5, rtol=1e-5)


def test_value_and_gradient_equal_the_equations():
    method, batch = make(), pictures(12, labels=False)
    z0, z1 = (method.projector(torch.cat([method.backbone(x) for x in method.views(batch, "crop", "crop")]))).chunk(2)
    expected = written_out(z0, z1)
    expected.backward()
    theirs = gradients(method)
    method.zero_grad()
    out = method.step(batch)
    out.loss.backward()
    torch.testing.assert_close(out.loss, expected.float())
    for name, grad in gradients(method).items():
        torch.testing.assert_close(grad, theirs[name], atol=1e-5, rtol=1e-4)


def test_sub_batches_of_several_positives_equal_lightly():
    method, batch = make(positives=3, whitening_size=8), pictures(16, labels=False)
    order = method.views.draw(batch, 100).uniform(1).argsort(0)[:, 0]
    z = method.projector(torch.cat([method.backbone(x) for x in method.views(batch, "crop", "crop", "crop")]))
    theirs = WMSELoss(embedding_dim=4, w_size=8, num_samples=3, track_running_stats=False)
    with mock.patch.object(torch, "randperm", return_value=order):
        torch.testing.assert_close(method.step(batch).loss, theirs(z), rtol=1e-4, atol=1e-5)


def test_the_order_is_drawn_anew_each_epoch_and_samples_keep_theirs():
    method = make()
    draws = [method.views.draw(pictures(8, epoch=epoch), 100).uniform(2) for epoch in (0, 0, 1)]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])
    z = F.normalize(torch.randn(32, 4), dim=1)
    whole = make(whitening_size=64).whitened(z, torch.arange(32))
    assert not torch.allclose(whole, make(whitening_size=16).whitened(z, torch.arange(32)))


def test_too_few_samples_and_views_are_refused():
    with pytest.raises(ValueError, match=r"4 samples have no covariance of full rank in projection_dim=4.*model\.shrinkage"):
        whiten(torch.randn(4, 4))
    assert whiten(torch.randn(4, 4), shrinkage=0.1).isfinite().all()
    with pytest.raises(ValueError, match="positives=1"):
        make(positives=1)


def test_as_configured_no_direction_escapes_the_whitening_by_shrinking():
    torch.manual_seed(0)
    method = make(shrinkage=raw("model", "wmse")["model"]["shrinkage"])
    z, order = torch.randn(64, 4), torch.arange(64)
    shrunk = z * torch.tensor([1.0, 1e-3, 1e-3, 1e-3])
    torch.testing.assert_close(method.whitened(shrunk, order), method.whitened(z, order), atol=1e-5, rtol=1e-5)


def test_embeddings_are_not_rounded_under_autocast():
    method, outputs = make(), []
    method.projector.register_forward_hook(lambda module, inputs, output: outputs.append(output.dtype))
    with torch.autocast("cpu", torch.bfloat16):
        method.step(pictures(12, labels=False))
    assert outputs == [torch.float32]
