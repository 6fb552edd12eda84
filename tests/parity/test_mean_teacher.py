from __future__ import annotations

import copy
import math

import pytest
import torch
import torch.nn.functional as F

from ssl_suite.functional.pseudo_labels import probability_mse, sharpen, sigmoid_ramp
from ssl_suite.methods.self_training.mean_teacher import MeanTeacher
from tests.parity.tiny import Tiny, gradients, semi, views


def make(**kwargs) -> MeanTeacher:
    torch.manual_seed(0)
    method = MeanTeacher(Tiny(), views(weak=0.5), num_classes=3, **{"weight": 2.0, "rampup": 0.5, **kwargs})
    with torch.no_grad():
        for p in method.teacher_head.parameters():
            p.add_(torch.randn_like(p))  # a teacher that disagrees
    method.progress = 0.25  # half way up the ramp
    return method


def test_value_and_gradient_equal_the_formula():
    method, batch = make(), semi()
    twin = copy.deepcopy(method)
    out = method.step(batch)
    out.loss.backward()

    labeled, unlabeled = (twin.views(batch[part], "weak", "weak") for part in ("labeled", "unlabeled"))
    student = twin.head(twin.backbone(torch.cat([labeled[0], unlabeled[0]]))).softmax(1)
    teacher = twin.teacher_head(twin.teacher_backbone(torch.cat([labeled[1], unlabeled[1]]))).softmax(1).detach()
    supervised = -student[range(6), batch["labeled"]["y"]].log().sum() / 6
    consistency = ((student - teacher) ** 2).sum() / (18 * 3)
    assert consistency > 1e-3
    expected = supervised + 2.0 * math.exp(-5 * 0.5**2) * consistency
    expected.backward()
    torch.testing.assert_close(out.loss, expected)
    torch.testing.assert_close(out.logs["loss_unsup"], consistency.detach())
    theirs = gradients(twin)
    for name, grad in gradients(method).items():
        torch.testing.assert_close(grad, theirs[name], atol=1e-6, rtol=1e-4)


def test_consistency_pulls_the_student_and_never_the_teacher():
    method, batch = make(rampup=0.0), semi()
    seen = {}
    method.head.register_forward_hook(lambda module, args, out: (out.retain_grad(), seen.update(logits=out))[0])
    out = method.step(batch)
    (out.loss - F.cross_entropy(seen["logits"][:6], batch["labeled"]["y"])).backward()
    assert seen["logits"].grad.abs().sum(1).min() > 0.0  # labelled rows, too
    assert method.backbone.stem.weight.grad.abs().sum() > 0.0
    assert all(p.grad is None for p in [*method.teacher_backbone.parameters(), *method.teacher_head.parameters()])


def test_student_and_teacher_see_two_views():
    method, batch = make(), semi()
    seen = []
    for module in (method.backbone, method.teacher_backbone):
        module.register_forward_hook(lambda module, args, out: seen.append(args[0]))
    method.step(batch)
    assert seen[0].shape == seen[1].shape
    assert (seen[0] - seen[1]).flatten(1).abs().sum(1).min() > 0.0


def test_momentum_follows_the_true_average_first():
    method = make(ema_decay=0.99)
    assert [method.momentum(t, 0) for t in (0, 1, 3, 10_000)] == [0.0, 0.5, 0.75, 0.99]


def test_the_teacher_is_judged_with_the_students_statistics():
    method, batch = make(), semi()
    method.step(batch)
    method.update_teachers(1, 100)
    assert torch.equal(method.teacher_backbone.norm.running_mean, method.backbone.norm.running_mean)
    method.eval()
    x = method.views(batch["labeled"], "clean")[0]
    assert torch.equal(method.logits(batch["labeled"]), method.teacher_head(method.teacher_backbone(x)))
    assert not torch.equal(method.logits(batch["labeled"]), method.head(method.backbone(x)))


def test_without_weight_it_is_supervised_training_and_hidden_labels_are_not_used():
    batch = semi()
    out = make(weight=0.0).step(batch)
    assert torch.equal(out.loss.detach(), out.logs["loss_sup"])
    plain = make().step(batch).loss
    batch["unlabeled"]["y"] = torch.full((12,), -1)
    assert torch.equal(plain, make().step(batch).loss)


def test_ramp_and_mse_and_sharpening():
    assert [sigmoid_ramp(t, 0.5) for t in (0.0, 0.25, 0.5, 0.9)] == pytest.approx([math.exp(-5), math.exp(-1.25), 1.0, 1.0])
    assert sigmoid_ramp(0.0, 0.0) == 1.0
    logits, target = torch.tensor([[0.0, 0.0]]), torch.tensor([[0.0, math.log(3.0)]])
    assert probability_mse(logits, target).item() == pytest.approx(0.25**2)
    torch.testing.assert_close(sharpen(target.softmax(1), 0.5), torch.tensor([[0.1, 0.9]]))


def test_ramp_outside_of_the_run_is_refused():
    with pytest.raises(ValueError, match=r"model\.rampup=5"):
        make(rampup=5)
