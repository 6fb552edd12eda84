from __future__ import annotations

import copy

import pytest
import torch

from ssl_suite.functional.pseudo_labels import linear_ramp
from ssl_suite.methods.self_training.pseudo_label import PseudoLabel
from tests.parity.tiny import Tiny, gradients, semi, views


def make(**kwargs) -> PseudoLabel:
    torch.manual_seed(0)
    return PseudoLabel(Tiny(), views(), num_classes=3, **kwargs)


@pytest.mark.parametrize("threshold", [0.0, 0.4])
def test_value_and_gradient_equal_the_formula(threshold):
    method, batch = make(threshold=threshold), semi()
    twin = copy.deepcopy(method)
    method.progress = 0.35  # half way up the ramp: alpha = 1.5
    out = method.step(batch)
    out.loss.backward()

    labeled, unlabeled = (twin.head(twin.backbone(twin.views(batch[part], "weak")[0])).log_softmax(1)
                          for part in ("labeled", "unlabeled"))
    kept = (unlabeled.exp().max(1).values >= threshold).float()
    assert kept.sum() > 0
    assert (kept.mean() < 1) == (threshold > 0)
    expected = -labeled[range(6), batch["labeled"]["y"]].sum() / 6 - 1.5 * (kept * unlabeled.max(1).values).sum() / 12
    expected.backward()
    torch.testing.assert_close(out.loss, expected)
    for name, grad in gradients(method).items():
        torch.testing.assert_close(grad, gradients(twin)[name], atol=1e-6, rtol=1e-4)


def test_ramp_has_the_shape_of_the_paper():
    values = [3.0 * linear_ramp(t / 1000, 0.1, 0.6) for t in (0, 99, 100, 350, 600, 1000)]
    assert values == pytest.approx([0.0, 0.0, 0.0, 1.5, 3.0, 3.0])
    assert linear_ramp(0.5, 0.5, 0.5) == 1.0


def test_unlabelled_pass_leaves_running_statistics_alone_and_uses_its_own_batch():
    method, batch = make(alpha=1.0), semi()
    twin = copy.deepcopy(method)
    method.progress = 1.0
    loss = method.step(batch).logs["loss_unsup"]
    twin.backbone(twin.views(batch["labeled"], "weak")[0])
    for ours, theirs in zip(method.backbone.buffers(), twin.backbone.buffers(), strict=True):
        assert torch.equal(ours, theirs)
    assert method.backbone.norm.track_running_stats
    twin.eval()  # control: running statistics would give another loss
    logits = twin.head(twin.backbone(twin.views(batch["unlabeled"], "weak")[0]))
    assert not torch.allclose(loss, -logits.log_softmax(1).max(1).values.mean())


def test_hidden_labels_are_not_used_and_alpha_zero_is_supervised():
    batch, method = semi(), make(alpha=0.0)
    method.progress = 1.0
    out = method.step(batch)
    assert torch.equal(out.loss.detach(), out.logs["loss_sup"])
    batch["unlabeled"]["y"] = torch.full((12,), -1)
    assert torch.equal(make().step(batch).loss, make().step(semi()).loss)


def test_ramp_that_runs_backwards_is_refused():
    with pytest.raises(ValueError, match=r"start=0\.6 and end=0\.1"):
        make(start=0.6, end=0.1)
