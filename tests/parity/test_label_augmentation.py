"""Label augmentation against loops over pictures, forms and classes."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from ssl_suite.methods.supervised.label_augmentation import LabelAugmentation, aggregate, transformed
from tests.parity.tiny import Tiny, gradients, pictures, views

K = 3


def make(**kwargs) -> LabelAugmentation:
    torch.manual_seed(0)
    return LabelAugmentation(Tiny(), views(), num_classes=K, **kwargs).eval()


@pytest.mark.parametrize(("turns", "colours"), [(4, 1), (2, 1), (1, 3), (1, 6), (4, 3), (2, 6), (4, 6)])
def test_forms_stand_beside_each_other(turns, colours):
    x = torch.randn(2, 3, 6, 6)
    out = transformed(x, turns, colours).view(2, turns * colours, 3, 6, 6)
    orders = {1: ["rgb"], 3: ["rgb", "gbr", "brg"], 6: ["rgb", "rbg", "grb", "gbr", "brg", "bgr"]}[colours]
    for i in range(2):
        for j in range(turns * colours):
            turned = torch.rot90(x[i], (j // colours) * (4 // turns), (1, 2))
            assert torch.equal(out[i, j], torch.stack([turned["rgb".index(c)] for c in orders[j % colours]]))
        assert torch.equal(out[i, 0], x[i])


def test_votes_are_the_mean_over_each_forms_own_logits():
    joint = torch.randn(5 * 4, K * 4)
    expected = torch.stack([torch.stack([torch.stack([joint[4 * i + j, y * 4 + j] for j in range(4)]).mean() for y in range(K)])
                            for i in range(5)])
    torch.testing.assert_close(aggregate(joint, 4), expected)


def test_the_joint_label_is_class_times_forms_plus_form():
    method, batch = make(), pictures(6)
    (x,) = method.views(batch, "weak")
    log_q = [method.head(method.backbone(torch.rot90(x, j, (2, 3)))).log_softmax(1) for j in range(4)]
    expected = sum(-log_q[j][i, int(y) * 4 + j] for i, y in enumerate(batch["y"]) for j in range(4)) / 24
    torch.testing.assert_close(method.step(batch).loss, expected)


def test_baselines_give_every_form_the_class():
    batch = pictures(6)
    for mode in ("invariant", "multitask"):
        method = make(mode=mode)
        (x,) = method.views(batch, "weak")
        h = [method.backbone(torch.rot90(x, j, (2, 3))) for j in range(4)]
        expected = sum(F.cross_entropy(method.head(h[j]), batch["y"]) for j in range(4)) / 4
        if mode == "multitask":
            expected = expected + sum(F.cross_entropy(method.form_head(h[j]), torch.full((6,), j)) for j in range(4)) / 4
        torch.testing.assert_close(method.step(batch).loss, expected)


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_the_plain_head_learns_labels_and_votes(temperature):
    method, batch = make(distill=True, temperature=temperature), pictures(6)
    (x,) = method.views(batch, "weak")
    logits = [method.head(method.backbone(torch.rot90(x, j, (2, 3)))) for j in range(4)]
    joint = sum(F.cross_entropy(logits[j], batch["y"] * 4 + j) for j in range(4)) / 4
    p = (sum(logits[j][:, j::4] for j in range(4)) / 4 / temperature).softmax(1)
    plain = method.plain_head(method.backbone(x))
    q = (plain / temperature).softmax(1)
    lesson = temperature**2 * (p * (p.log() - q.log())).sum() / 6
    torch.testing.assert_close(method.step(batch).loss, joint + F.cross_entropy(plain, batch["y"]) + lesson)


def test_the_lesson_never_reaches_the_joint_head():
    method, batch = make(distill=True), pictures(6)
    (x,) = method.views(batch, "weak")
    h = method.backbone(transformed(x, 4, 1))
    method.lesson(method.plain_head(h[::4]), aggregate(method.head(h), 4)).backward()
    reached = gradients(method)
    assert reached["plain_head.weight"].abs().sum() > 0.0
    assert not {"head.weight", "head.bias"} & reached.keys()


def test_what_predicts():
    batch = pictures(6)
    (x,) = (method := make()).views(batch, "clean")
    logits = [method.head(method.backbone(torch.rot90(x, j, (2, 3)))) for j in range(4)]
    votes, single = sum(logits[j][:, j::4] for j in range(4)) / 4, logits[0][:, 0::4]
    torch.testing.assert_close(method.logits(batch), votes)
    scores = method.score(batch)
    for name, answer in (("accuracy", votes), ("accuracy_aggregated", votes), ("accuracy_single", single)):
        assert scores[name] == ((answer.argmax(1) == batch["y"]).sum(), 6)
    taught = make(distill=True)
    torch.testing.assert_close(taught.logits(batch), taught.plain_head(taught.backbone(x)))
    assert make(mode="invariant").score(batch).keys() == {"accuracy"}


@pytest.mark.parametrize(("wrong", "match"), [
    ({"turns": 3}, "turns=3"), ({"turns": 1}, "not both 1"), ({"colours": 2}, "colours=2"),
    ({"distill": True, "mode": "multitask"}, "distill"), ({"temperature": 0.0}, "temperature=0")])
def test_nonsense_is_refused(wrong, match):
    with pytest.raises(ValueError, match=match):
        make(**wrong)


def test_pictures_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"set model\.turns=2"):
        transformed(torch.zeros(2, 3, 8, 6), 4, 1)
    with pytest.raises(ValueError, match=r"set model\.colours=1"):
        transformed(torch.zeros(2, 1, 8, 8), 1, 3)
    assert transformed(torch.zeros(2, 1, 8, 6), 2, 1).shape == (4, 1, 8, 6)
