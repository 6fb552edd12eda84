from __future__ import annotations

import copy
import math

import pytest
import torch

from ssl_suite.methods.self_training.pi_model import PiModel
from tests.parity.tiny import Tiny, gradients, semi, views


def make(**kwargs) -> PiModel:
    torch.manual_seed(0)
    method = PiModel(Tiny(), views(weak=0.5), num_classes=3, **{"weight": 20.0, "rampup": 0.5, **kwargs})
    method.progress = 0.25  # half way up the ramp
    return method


def test_value_and_gradient_equal_the_formula():
    method, batch = make(), semi()
    twin = copy.deepcopy(method)
    out = method.step(batch)
    out.loss.backward()

    labeled, unlabeled = (twin.views(batch[part], "weak", "weak") for part in ("labeled", "unlabeled"))
    first, second = (twin.head(twin.backbone(torch.cat([labeled[i], unlabeled[i]]))).softmax(1) for i in (0, 1))
    supervised = -first[range(6), batch["labeled"]["y"]].log().sum() / 6
    consistency = ((first - second) ** 2).sum() / (18 * 3)
    expected = supervised + 20.0 * math.exp(-5 * 0.5**2) * consistency
    expected.backward()
    assert consistency > 1e-4
    torch.testing.assert_close(out.loss, expected)
    theirs = gradients(twin)
    for name, grad in gradients(method).items():
        torch.testing.assert_close(grad, theirs[name], atol=1e-6, rtol=1e-4)


def test_consistency_pulls_both_views():
    method, batch = make(rampup=0.0), semi()
    seen = []
    method.head.register_forward_hook(lambda module, args, out: (out.retain_grad(), seen.append(out))[0])
    out = method.step(batch)
    (out.loss - torch.nn.functional.cross_entropy(seen[0][:6], batch["labeled"]["y"])).backward()
    assert len(seen) == 2
    for logits in seen:
        assert logits.grad.abs().sum(1).min() > 0.0
    assert method.backbone.stem.weight.grad.abs().sum() > 0.0


def test_without_weight_it_is_supervised_training_and_hidden_labels_are_not_used():
    batch = semi()
    out = make(weight=0.0).step(batch)
    assert torch.equal(out.loss.detach(), out.logs["loss_sup"])
    assert out.logs["loss_unsup"] > 0.0
    plain = make().step(batch).loss
    batch["unlabeled"]["y"] = torch.full((12,), -1)
    assert torch.equal(plain, make().step(batch).loss)


def test_ramp_outside_of_the_run_is_refused():
    with pytest.raises(ValueError, match=r"model\.rampup=-0\.1"):
        make(rampup=-0.1)
