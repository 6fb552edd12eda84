"""MoCo v3 against algorithm 1 of the paper, written out."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from ssl_suite.backbones.images import ViT
from ssl_suite.batch import Spec
from ssl_suite.methods.pretraining.moco_v3 import MoCoV3
from tests.parity.tiny import Tiny, gradients, pictures, views


def make(backbone: nn.Module | None = None, **kwargs) -> MoCoV3:
    torch.manual_seed(0)
    return MoCoV3(backbone or Tiny(), views(), hidden_dim=32, projection_dim=8, **kwargs)


def contrast(q: Tensor, k: Tensor, temperature: float) -> Tensor:
    """``ctr`` of algorithm 1: own keys on the diagonal, times 2 tau."""
    q, k = q / q.norm(dim=1, keepdim=True), k / k.norm(dim=1, keepdim=True)
    similar = torch.exp(q @ k.T / temperature)
    return -2 * temperature * torch.log(similar.diagonal() / similar.sum(1)).mean()


def test_value_and_gradient_equal_algorithm_1():
    method, batch = make(temperature=0.3), pictures(7, labels=False)
    with torch.no_grad():
        method.teacher_projector[0].weight.mul_(-0.5)
    twin = copy.deepcopy(method)
    loss = method.step(batch).loss
    loss.backward()
    x0, x1 = twin.views(batch, "crop", "crop")
    q0, q1 = (twin.predictor(twin.projector(twin.backbone(x))) for x in (x0, x1))
    k0, k1 = (twin.teacher_projector(twin.teacher_backbone(x)).detach() for x in (x0, x1))
    expected = contrast(q0, k1, 0.3) + contrast(q1, k0, 0.3)
    expected.backward()
    torch.testing.assert_close(loss, expected)
    theirs = gradients(twin)
    assert set(theirs) == set(gradients(method))
    for name, grad in gradients(method).items():
        torch.testing.assert_close(grad, theirs[name], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("freeze", [True, False])
def test_the_patch_embedding_of_a_transformer_stays_as_it_was_drawn(freeze):
    spec = Spec("images", (1, 8, 8))
    method = make(ViT(spec, patch_size=4, width=32, depth=1, heads=2), freeze_patches=freeze)
    method.step(pictures(6, labels=False)).loss.backward()
    grads = [p.grad for p in method.backbone.net.patch_embed.parameters()]
    assert all((g is None) == freeze for g in grads)
    grouped = {id(p) for group in method.groups() for p in group["params"]}
    assert all((id(p) in grouped) != freeze for p in method.backbone.net.patch_embed.parameters())
    assert method.backbone.net.pos_embed.grad is not None


def test_a_temperature_of_nothing_is_refused():
    with pytest.raises(ValueError, match="temperature=0"):
        make(temperature=0.0)
