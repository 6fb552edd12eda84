"""iBOT and DINOv2 against their formulas written out picture by picture, and against lightly's losses."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from lightly.loss import IBOTPatchLoss, KoLeoLoss
from torch import Tensor

from ssl_suite.batch import Batch, Spec
from ssl_suite.functional.sinkhorn import masked_sinkhorn, sinkhorn
from ssl_suite.methods.pretraining.dinov2 import DINOv2, koleo
from ssl_suite.methods.pretraining.ibot import IBOT, patch_prediction
from ssl_suite.nn.centre import Centre
from ssl_suite.testing import tiny_batch, tiny_views
from tests.parity.test_dino import cosines
from tests.parity.test_mae import PICTURES, SERIES, series, vit
from tests.parity.tiny import gradients


def make(kind: type[IBOT] = IBOT, spec: Spec = PICTURES, **options: Any) -> Any:
    torch.manual_seed(0)
    small = {"local_crops": 2, "num_prototypes": 12, "hidden_dim": 16, "bottleneck_dim": 8, "smallest_block": 2,
             "mask_ratio": (0.2, 0.5)}
    method = kind(vit() if spec is PICTURES else series(), tiny_views(spec), **{**small, **options})
    with torch.no_grad():
        for teacher in method.teachers:
            for p in getattr(method, teacher).parameters():
                p.add_(0.1 * torch.randn_like(p))  # a teacher unlike the student
        method.centre.value.normal_(std=0.1)
        method.patch_centre.value.normal_(std=0.1)
    return method


def entropy(p: Tensor, scores: Tensor) -> Tensor:
    q = (scores / 0.1).exp()
    return -(p * (q / q.sum(-1, keepdim=True)).log()).sum(-1)


def masks(method: IBOT, batch: Batch) -> Tensor:
    return torch.cat([method.draw_mask(batch, i, (4, 4), None) for i in range(2)])


def forward(method: IBOT, batch: Batch, mask: Tensor) -> tuple[list[Tensor], Tensor, Tensor, Tensor]:
    """Pooled student representations of every crop, its tokens, and the same of the teacher for the large crops."""
    views = method.views(batch, "crop", "crop", "local", "local")
    x, net = torch.cat(views[:2]), method.backbone.net
    tokens = torch.where(mask[..., None], method.mask_token, net.patch_embed(x).flatten(1, 2))
    tokens = torch.cat([(net.cls_token + net.pos_embed[:, :1]).expand(len(x), -1, -1), tokens + net.pos_embed[:, 1:]], dim=1)
    student = net.norm(net.blocks(tokens))[:, 1:]
    pooled = [*student.mean(1).chunk(2), *(method.backbone(v) for v in views[2:])]
    with torch.no_grad():
        teacher = method.teacher_backbone.tokens(x)
    return pooled, student, teacher, teacher.mean(1)


def agree(method: IBOT, twin: IBOT, loss: Tensor, expected: Tensor) -> None:
    loss.backward()
    expected.backward()
    torch.testing.assert_close(loss, expected)
    theirs = gradients(twin)
    assert theirs.keys() == gradients(method).keys()
    for name, grad in gradients(method).items():
        torch.testing.assert_close(grad, theirs[name], atol=1e-5, rtol=1e-3)


def pictures_term(student: list[Tensor], whole: list[Tensor]) -> Tensor:
    pairs = [entropy(p, s).mean() for i, p in enumerate(whole) for j, s in enumerate(student) if i != j]
    return torch.stack(pairs).mean()


def patches_term(student: Tensor, local: Tensor, mask: Tensor) -> Tensor:
    """One picture after the other; ``local`` holds a distribution for every patch."""
    total = torch.zeros(())
    for b in range(len(mask)):
        if mask[b].any():
            total = total + entropy(local[b][mask[b]], student[b][mask[b]]).mean() / len(mask)
    return total


def test_ibot_is_its_formula() -> None:
    method, batch = make(), tiny_batch(PICTURES, 6)
    twin = copy.deepcopy(method)
    loss = method.step(batch).loss
    mask = masks(twin, batch)
    assert 0 < mask.any(1).sum() < 12, "some hide patches, some do not"
    pooled, student, teacher, pooled_teacher = forward(twin, batch, mask)
    with torch.no_grad():
        whole = ((cosines(twin.teacher_head, pooled_teacher) - twin.centre.value) / 0.04).softmax(1).chunk(2)
        scores = torch.stack([cosines(twin.teacher_head, row) for row in teacher])
        local = ((scores - twin.patch_centre.value) / 0.04).softmax(2)
    expected = pictures_term([cosines(twin.head, h) for h in pooled], list(whole))
    expected = expected + patches_term(torch.stack([cosines(twin.head, row) for row in student]), local, mask)
    agree(method, twin, loss, expected)
    torch.testing.assert_close(method.patch_centre.value, 0.9 * twin.patch_centre.value + 0.1 * scores[mask].mean(0))


def balanced(scores: Tensor, temperature: float) -> Tensor:
    """Sinkhorn-Knopp on the matrix itself, in float64."""
    q = (scores.double() / temperature).exp()
    for _ in range(3):
        q = q / q.sum(0, keepdim=True)
        q = q / q.sum(1, keepdim=True)
    return q.float()


def test_dinov2_is_its_formula() -> None:
    method, batch = make(DINOv2), tiny_batch(PICTURES, 6)
    twin = copy.deepcopy(method)
    loss = method.step(batch).loss
    mask = masks(twin, batch)
    pooled, student, teacher, pooled_teacher = forward(twin, batch, mask)
    with torch.no_grad():
        whole = balanced(cosines(twin.teacher_head, pooled_teacher), 0.04).chunk(2)
        local = torch.zeros(12, 16, 12)
        local[mask] = balanced(cosines(twin.teacher_patch_head, teacher[mask]), 0.04)
    expected = pictures_term([cosines(twin.head, h) for h in pooled], list(whole))
    expected = expected + patches_term(torch.stack([cosines(twin.patch_head, row) for row in student]), local, mask)
    for h in pooled[:2]:
        z = h / h.norm(dim=1, keepdim=True)
        near = torch.stack([min((z[i] - z[j]).norm() for j in range(6) if j != i) for i in range(6)])
        expected = expected - 0.1 * near.log().mean()
    agree(method, twin, loss, expected)
    assert torch.equal(method.centre.value, twin.centre.value), "Sinkhorn needs no centre"


def test_mean_centring_without_koleo_is_ibot_with_two_heads() -> None:
    plain, other, batch = make(), make(DINOv2, centring="mean", koleo_weight=0.0), tiny_batch(PICTURES, 6)
    with torch.no_grad():
        for name in ("head", "teacher_head", "backbone", "teacher_backbone"):
            getattr(other, name).load_state_dict(getattr(plain, name).state_dict())
        other.patch_head.load_state_dict(plain.head.state_dict())
        other.teacher_patch_head.load_state_dict(plain.teacher_head.state_dict())
        for name in ("centre", "patch_centre", "mask_token"):
            own = getattr(plain, name)
            getattr(other, name).load_state_dict(own.state_dict()) if isinstance(own, Centre) else other.mask_token.copy_(own)
    torch.testing.assert_close(other.step(batch).loss, plain.step(batch).loss)


def test_patch_loss_is_lightlys() -> None:
    torch.manual_seed(0)
    mask = torch.zeros(4, 3, 3, dtype=torch.bool)
    mask[0, :2, :2], mask[1, 1, 1], mask[3] = True, True, True
    teacher, student = torch.randn(4, 9, 7), torch.randn(4, 9, 7)
    flat, theirs, centre = mask.flatten(1), IBOTPatchLoss(7, teacher_temp=0.05), Centre(7)
    for _ in range(2):
        expected = theirs(teacher[flat], student[flat], mask)
        torch.testing.assert_close(patch_prediction(student, centre(teacher, 0.05, flat), flat, 0.1), expected)
        torch.testing.assert_close(centre.value, theirs.center.value[0])


def test_a_patch_weighs_one_over_the_hidden_patches_of_its_picture() -> None:
    counts = torch.tensor([[True, True, True, True], [True, False, False, False], [False] * 4])
    scores = torch.zeros(3, 4, 5, requires_grad=True)
    targets = torch.eye(5)[0].expand(3, 4, 5)
    patch_prediction(scores, targets, counts, 1.0).backward()
    assert scores.grad is not None
    torch.testing.assert_close(scores.grad[..., 0], -0.8 / 3 * torch.tensor([[0.25] * 4, [1.0, 0, 0, 0], [0.0] * 4]))


def test_masked_sinkhorn_is_sinkhorn_over_what_counts_and_does_not_overflow() -> None:
    scores, counts = 100.0 * torch.randn(20, 6), torch.arange(20) % 3 > 0
    mine = masked_sinkhorn(scores, counts, 0.04)
    torch.testing.assert_close(mine[counts], sinkhorn(scores[counts], 0.04))
    torch.testing.assert_close(mine.sum(1), torch.ones(20))
    assert masked_sinkhorn(scores, torch.zeros_like(counts), 0.04).isfinite().all()


def test_koleo_is_lightlys_in_float32() -> None:
    h = torch.randn(8, 5)
    torch.testing.assert_close(koleo(h), KoLeoLoss()(h))
    with torch.autocast("cpu", torch.bfloat16):
        assert koleo(h).dtype == torch.float32
        torch.testing.assert_close(koleo(h), KoLeoLoss()(h.double()).float())
    near = torch.stack([torch.ones(4), torch.ones(4) + 1e-9, -torch.ones(4)]).requires_grad_()
    koleo(near).backward()
    assert near.grad is not None
    assert near.grad.isfinite().all()


def test_half_of_the_large_crops_hide_blocks_of_their_own() -> None:
    method = make(mask_ratio=(0.3, 0.5))
    batch = tiny_batch(PICTURES, 600)
    first, second = (method.draw_mask(batch, i, (4, 4), None) for i in range(2))
    assert first.any(1).float().mean().item() == pytest.approx(0.5, abs=0.07)
    assert not torch.equal(first, second)
    assert first.sum(1).max() <= 8


def test_hidden_patches_reach_the_teacher_only() -> None:
    method, batch = make(mask_share=1.0, local_crops=0).eval(), tiny_batch(PICTURES, 4)
    captured: list[Tensor] = []
    method.backbone.net.blocks[0].register_forward_pre_hook(lambda m, x: captured.append(x[0]))
    method.step(batch)
    mask = masks(method, batch)
    hidden = captured[0][:, 1:][mask] - method.backbone.net.pos_embed[:, 1:].expand(8, -1, -1)[mask]
    torch.testing.assert_close(hidden, method.mask_token.expand_as(hidden))


def test_teachers_share_nothing_and_one_of_them_is_judged() -> None:
    for kind in (IBOT, DINOv2):
        method = kind(vit(), tiny_views(PICTURES), num_prototypes=12, hidden_dim=16, bottleneck_dim=8)
        assert method.encoder is method.teacher_backbone
        assert set(method.teachers) == {n for n, _ in method.named_children() if n.startswith("teacher")}
        for teacher, student in method.teachers.items():
            pairs = zip(getattr(method, teacher).parameters(), getattr(method, student).parameters(), strict=True)
            assert all(t.untyped_storage().data_ptr() != s.untyped_storage().data_ptr() for t, s in pairs)


def test_the_last_layers_rest_at_first() -> None:
    for kind, count in ((IBOT, 1), (DINOv2, 2)):
        groups = make(kind, frozen=0.1).groups()
        late = [group for group in groups if "schedule" in group]
        assert sum(len(group["params"]) for group in late) == count
        assert late[0]["schedule"](0, 100) == 0.0 < late[0]["schedule"](20, 100)


@pytest.mark.parametrize("kind", [IBOT, DINOv2])
def test_padding_changes_nothing(kind: type[IBOT]) -> None:
    method, batch = make(kind, SERIES).eval(), tiny_batch(SERIES, 4)
    batch["length"] = torch.tensor([40, 20, 8, 4])
    dirty = {**batch, "x": torch.where(torch.arange(40) < batch["length"][:, None, None], batch["x"], 50.0)}
    torch.testing.assert_close(method.step(dirty).loss, method.step(batch).loss)


@pytest.mark.parametrize(("kind", "options"), [(IBOT, {"mask_ratio": (0.5, 0.1)}), (IBOT, {"temperature": 0.0}),
                                               (DINOv2, {"centring": "median"})])
def test_mistakes_are_told(kind: type[IBOT], options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        make(kind, **options)
    assert math.isfinite(make(kind).step(tiny_batch(PICTURES, 4)).loss.item()), "the control"
