from __future__ import annotations

import functools

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from ssl_suite.methods.supervised.classifier import Classifier
from tests.parity.tiny import Tiny, gradients, pictures, views


def make(**kwargs) -> Classifier:
    torch.manual_seed(0)
    return Classifier(Tiny(), views(), num_classes=3, **kwargs)


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_loss_equals_the_formula(smoothing):
    method, batch = make(label_smoothing=smoothing), pictures(6)
    out = method.step(batch)
    log_p = method.head(method.backbone(method.views(batch, "weak")[0])).log_softmax(1)
    expected = -(1 - smoothing) * log_p[range(6), batch["y"]].mean() - smoothing * log_p.mean()
    torch.testing.assert_close(out.loss, expected)
    assert out.features.shape == (6, 16)
    assert not out.features.requires_grad


def test_linear_probe_moves_the_head_alone():
    method, batch = make(frozen=True), pictures(6)
    method.train()
    before = {name: value.clone() for name, value in method.backbone.state_dict().items()}
    method.step(batch).loss.backward()
    assert set(gradients(method)) == {"head.weight", "head.bias"}
    assert {id(p) for group in method.groups() for p in group["params"]} == {id(p) for p in method.head.parameters()}
    assert all(torch.equal(before[name], value) for name, value in method.backbone.state_dict().items())
    assert not method.backbone.norm.training
    assert method.head.training
    moving = make().train()  # control: without freezing the statistics do move
    moving.step(batch)
    assert not torch.equal(before["norm.running_mean"], moving.backbone.norm.running_mean)


@pytest.mark.parametrize("kind", ["mixup", "cutmix"])
def test_mixing_blends_each_sample_with_its_mirror_image_in_the_batch(kind):
    method, batch = make(**{kind: 1.0}, label_smoothing=0.1), pictures(6)
    x = method.views(batch, "weak")[0]
    np.random.seed(3)  # noqa: NPY002 (timm draws from it)
    blended, target, _ = method.mixed(x.clone(), batch["y"], None)
    smooth = F.one_hot(batch["y"], 3) * 0.9 + 0.1 / 3
    share = ((target - smooth.flip(0)) / (smooth - smooth.flip(0)))[0, 0]  # rows 0 and 5 differ in class
    assert 0.0 < share < 1.0
    torch.testing.assert_close(target, share * smooth + (1 - share) * smooth.flip(0))
    if kind == "mixup":
        torch.testing.assert_close(blended, share * x + (1 - share) * x.flip(0))
    else:
        own = blended == x
        assert torch.equal(blended[~own], x.flip(0)[~own])
        assert own.float().mean() == pytest.approx(share.item(), abs=1e-4)
    np.random.seed(3)  # noqa: NPY002 (timm draws from it)
    log_p = method.head(method.backbone(blended)).log_softmax(1)
    torch.testing.assert_close(method.step(batch).loss, -(target * log_p).sum(1).mean())


def test_mixed_rows_are_as_long_as_the_longer():
    method = make(mixup=1.0)
    _, _, length = method.mixed(torch.randn(4, 9), torch.zeros(4, dtype=torch.int64), torch.tensor([9, 5, 3, 4]))
    assert length.tolist() == [9, 5, 5, 9]


def test_layer_decay_starts_from_the_optimizers_own_rate():
    method = make(layer_decay=0.5, optimizer=functools.partial(torch.optim.SGD, lr=0.8))
    method.backbone.blocks = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2))
    rates = {id(p): group["lr"] for group in method.groups() for p in group["params"]}
    assert set(rates) == {id(p) for p in method.parameters()}
    assert rates[id(method.head.weight)] == 0.8
    assert rates[id(method.backbone.blocks[1].weight)] == pytest.approx(0.4)
    assert rates[id(method.backbone.blocks[0].weight)] == pytest.approx(0.2)
    assert rates[id(method.backbone.stem.weight)] == pytest.approx(0.1)


def test_bad_input_is_named():
    with pytest.raises(ValueError, match=r"model\.layer_decay=0\.5 with model\.frozen=True"):
        make(frozen=True, layer_decay=0.5)
    with pytest.raises(ValueError, match=r"even number of samples, got 5.*batch_size"):
        make(mixup=0.5).step(pictures(5))
    with pytest.raises(ValueError, match=r"model\.cutmix.*\(4, 9\)"):
        make(cutmix=0.5).mixed(torch.randn(4, 9), torch.zeros(4, dtype=torch.int64), None)


def test_logits_judge_clean_samples():
    method, batch = make().eval(), pictures(6)
    x = method.views(batch, "clean")[0]
    assert torch.equal(method.logits(batch), method.head(method.backbone(x)))
    total, count = method.score(batch)["accuracy"]
    assert (int(total), count) == (int((method.logits(batch).argmax(1) == batch["y"]).sum()), 6)
