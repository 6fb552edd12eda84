"""MSN against its equation written out."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch

from ssl_suite.batch import Spec
from ssl_suite.functional.masking import random_order
from ssl_suite.methods.pretraining.msn import MSN
from ssl_suite.testing import tiny_batch, tiny_views
from tests.parity.test_mae import PICTURES, SERIES, series, vit
from tests.parity.tiny import gradients


def make(spec: Spec = PICTURES, **options: Any) -> MSN:
    torch.manual_seed(0)
    small = {"focal_views": 2, "random_views": 2, "mask_ratio": 0.5, "num_prototypes": 6, "hidden_dim": 16, "projection_dim": 8}
    method = MSN(vit() if spec is PICTURES else series(), tiny_views(spec), **{**small, **options})
    with torch.no_grad():
        for p in method.teacher_backbone.parameters():
            p.add_(0.1 * torch.randn_like(p))  # a teacher unlike the student
    return method


@pytest.mark.parametrize("iterations", [0, 3])
def test_value_and_gradient_are_those_of_the_equation(iterations: int) -> None:
    method, batch = make(iterations=iterations), tiny_batch(PICTURES, 8)
    twin = copy.deepcopy(method)
    loss = method.step(batch).loss
    loss.backward()
    views = twin.views(batch, "crop", "crop", "crop", "local", "local")
    hs = []
    for i in range(2):
        kept = random_order(twin.views.draw(batch, 100 + i), 16)[:, :8]
        tokens = twin.backbone.embed(views[1 + i])
        visible = torch.stack([tokens[b, kept[b]] for b in range(8)])
        hs.append(twin.backbone.encode(visible)[:, 1:].mean(1))
    hs += [twin.backbone(v) for v in views[3:]]
    c = twin.prototypes.weight / twin.prototypes.weight.norm(dim=1, keepdim=True)

    def probabilities(z: torch.Tensor) -> torch.Tensor:
        return (z / z.norm(dim=1, keepdim=True) @ c.T / 0.1).softmax(1)

    anchors = probabilities(twin.projector(torch.cat(hs)))
    with torch.no_grad():
        targets = probabilities(twin.teacher_projector(twin.teacher_backbone(views[0]))) ** 4
        targets = targets / targets.sum(1, keepdim=True)
        for _ in range(iterations):
            targets = targets / targets.sum(0, keepdim=True)
            targets = targets / targets.sum(1, keepdim=True)
    mean = anchors.mean(0)
    cross = -(targets.repeat(4, 1) * anchors.log()).sum(1).mean()
    expected = cross + (mean * mean.log()).sum() + math.log(6)
    expected.backward()
    torch.testing.assert_close(loss, expected)
    theirs = gradients(twin)
    assert theirs.keys() == gradients(method).keys()
    for name, grad in gradients(method).items():
        torch.testing.assert_close(grad, theirs[name], atol=1e-5, rtol=1e-3)


def test_masked_anchors_see_their_share_only_and_the_teacher_sees_all() -> None:
    method, batch = make(), tiny_batch(PICTURES, 4)
    seen: dict[str, list[int]] = {"student": [], "teacher": []}
    for name, net in (("student", method.backbone), ("teacher", method.teacher_backbone)):
        net.net.blocks[0].register_forward_pre_hook(lambda m, x, name=name: seen[name].append(x[0].shape[1]))
    method.step(batch)
    assert seen == {"student": [9, 9, 17], "teacher": [17]}


def test_memax_rises_when_predictions_gather() -> None:
    method = make()
    even = torch.full((6,), 1 / 6)
    assert method.criterion.regularization_loss(even).item() == pytest.approx(0.0, abs=1e-6)
    assert method.criterion.regularization_loss(torch.tensor([0.9, 0.02, 0.02, 0.02, 0.02, 0.02])) > 1.0


def test_the_teacher_is_judged_and_shares_nothing() -> None:
    method = make()
    assert method.encoder is method.teacher_backbone
    own = {p.untyped_storage().data_ptr() for p in method.parameters() if p.requires_grad}
    assert not own & {p.untyped_storage().data_ptr() for name in method.teachers for p in getattr(method, name).parameters()}


def test_padding_changes_nothing() -> None:
    method, batch = make(SERIES).eval(), tiny_batch(SERIES, 4)
    batch["length"] = torch.tensor([40, 20, 8, 4])
    dirty = {**batch, "x": torch.where(torch.arange(40) < batch["length"][:, None, None], batch["x"], 50.0)}
    torch.testing.assert_close(method.step(dirty).loss, method.step(batch).loss)


@pytest.mark.parametrize("options", [{"random_views": 0}, {"sharpening": 2.0}, {"mask_ratio": 1.0}])
def test_mistakes_are_told(options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        make(**options)
