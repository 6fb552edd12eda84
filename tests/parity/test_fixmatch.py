from __future__ import annotations

import copy
import math

import pytest
import torch
import torch.nn.functional as F

from ssl_suite.functional.ema import update_teacher
from ssl_suite.functional.pseudo_labels import concat_rows, consistency_loss
from ssl_suite.methods.self_training.fixmatch import FixMatch
from ssl_suite.methods.self_training.policies import FixedThreshold, Policy
from tests.parity.tiny import Tiny, gradients, semi, views


def make(threshold: float = 0.5, **kwargs) -> FixMatch:
    torch.manual_seed(0)
    method = FixMatch(Tiny(), views(weak=0.3, strong=1.0), num_classes=3, policy=FixedThreshold(threshold), **kwargs)
    with torch.no_grad():
        method.head.weight.mul_(5.0)  # confidences on both sides of the threshold
    return method


def written_out(method: FixMatch, batch: dict, threshold: float, lambda_u: float) -> torch.Tensor:
    """Equations 3 and 4 sample by sample; the rows share one forward."""
    (labeled,) = method.views(batch["labeled"], "weak")
    weak, strong = method.views(batch["unlabeled"], "weak", "strong")
    logits = method.head(method.backbone(torch.cat([labeled, weak, strong])))
    b, m = len(labeled), len(weak)
    log_p = logits - logits.exp().sum(1, keepdim=True).log()
    supervised = -sum(log_p[i, batch["labeled"]["y"][i]] for i in range(b)) / b
    unsupervised = 0.0
    for i in range(m):
        q = log_p[b + i].detach().exp()
        if q.max() >= threshold:
            unsupervised = unsupervised - log_p[b + m + i, q.argmax()]
    return supervised + lambda_u * unsupervised / m


def test_value_and_gradient_equal_the_formula():
    method, batch = make(lambda_u=0.7), semi()
    twin = copy.deepcopy(method)
    out = method.step(batch)
    expected = written_out(twin, batch, 0.5, 0.7)
    out.loss.backward()
    expected.backward()
    assert 0.0 < out.logs["mask_ratio"] < 1.0  # some are kept, some are not
    torch.testing.assert_close(out.loss, expected)
    theirs = gradients(twin)
    assert set(theirs) == set(gradients(method))
    for name, grad in gradients(method).items():
        torch.testing.assert_close(grad, theirs[name], atol=1e-6, rtol=1e-4)


def test_mean_divides_by_the_whole_batch():
    logits, target = torch.randn(8, 3), torch.zeros(8, dtype=torch.int64)
    weight = torch.tensor([1.0] + [0.0] * 7)
    torch.testing.assert_close(consistency_loss(logits, target, weight), F.cross_entropy(logits[:1], target[:1]) / 8)


def test_unsupervised_gradient_reaches_the_student_through_the_strong_view_only():
    method, batch = make(threshold=0.0), semi()
    seen = {}
    method.head.register_forward_hook(lambda module, args, out: (out.retain_grad(), seen.update(logits=out))[0])
    out = method.step(batch)
    (out.loss - F.cross_entropy(seen["logits"][:6], batch["labeled"]["y"])).backward()
    grad = seen["logits"].grad
    assert grad[:18].abs().max() < 1e-7  # labelled rows cancel, weak rows are targets
    assert grad[18:].abs().sum(1).min() > 0.0
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in [method.backbone.stem.weight, method.head.weight])
    assert all(p.grad is None for p in [*method.ema_backbone.parameters(), *method.ema_head.parameters()])


def test_labels_hidden_in_the_unlabelled_part_are_not_used():
    batch = semi()
    plain = make().step(batch).loss
    batch["unlabeled"]["y"] = torch.full((12,), -1)
    assert torch.equal(plain, make().step(batch).loss)


def test_without_unsupervised_weight_it_is_supervised_training():
    method, batch = make(lambda_u=0.0), semi()
    out = method.step(batch)
    assert torch.equal(out.loss.detach(), out.logs["loss_sup"])
    assert out.logs["loss_unsup"] > 0.0


def test_evaluation_uses_the_averaged_weights_and_their_buffers():
    method, batch = make(), semi()
    method.step(batch).loss.backward()
    torch.optim.SGD(method.parameters(), lr=0.5).step()
    before = method.ema_head.weight.clone()
    assert not torch.equal(method.ema_backbone.norm.running_mean, method.backbone.norm.running_mean)
    method.update_teachers(1, 100)
    torch.testing.assert_close(method.ema_head.weight, 0.5 * before + 0.5 * method.head.weight)
    assert torch.equal(method.ema_backbone.norm.running_mean, method.backbone.norm.running_mean)
    method.eval()
    x = method.views(batch["labeled"], "clean")[0]
    assert torch.equal(method.logits(batch["labeled"]), method.ema_head(method.ema_backbone(x)))
    assert not torch.equal(method.logits(batch["labeled"]), method.head(method.backbone(x)))


def test_momentum_warms_up_and_can_be_plain():
    warm, plain = make(ema_decay=0.99), make(ema_decay=0.99, ema_warmup=False)
    assert [warm.momentum(t, 0) for t in (0, 1, 3, 10_000)] == [0.0, 0.5, 0.75, 0.99]
    assert plain.momentum(1, 0) == 0.99
    assert math.isclose(warm.momentum(98, 0), 1.0 - 1.0 / 99)


def test_policy_gets_detached_probabilities_and_indices():
    class Spy(Policy):
        def forward(self, probs, index=None, labeled_probs=None, labels=None):
            self.seen = probs, index, labeled_probs, labels
            return probs, probs.new_full((len(probs),), 0.5)  # soft targets, soft weights

    method, batch = make(), semi()
    method.policy = Spy()
    out = method.step(batch)
    probs, index, labeled, labels = method.policy.seen
    assert torch.equal(labels, batch["labeled"]["y"])
    assert not probs.requires_grad
    assert not labeled.requires_grad
    assert torch.equal(index, batch["unlabeled"]["index"])
    assert labeled.shape == (6, 3)
    torch.testing.assert_close(probs.sum(1), torch.ones(12))
    assert out.logs["mask_ratio"] == 0.5


def test_rows_of_different_length_are_padded_together():
    a, b = torch.ones(2, 5), torch.ones(3, 7)
    x, length = concat_rows([a, b], [torch.tensor([5, 4]), None])
    assert x.shape == (5, 7)
    assert length.tolist() == [5, 4, 7, 7, 7]
    assert x[0].tolist() == [1.0] * 5 + [0.0] * 2
    assert concat_rows([a, a], [None, None])[1] is None
    assert concat_rows([a, b], [None, None])[1].tolist() == [5, 5, 7, 7, 7]


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_teacher_never_shares_storage(momentum):
    method = make()
    update_teacher(method.ema_backbone, method.backbone, momentum)
    with torch.no_grad():
        method.backbone.stem.weight.add_(1.0)
    assert not torch.equal(method.ema_backbone.stem.weight, method.backbone.stem.weight)
