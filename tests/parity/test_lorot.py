"""LoRot against loops over rot90 of slices."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from ssl_suite.functional.random import Draw
from ssl_suite.functional.rotation import rotate, rotate_patch
from ssl_suite.methods.supervised.lorot import LoRot, turned_patch
from tests.parity.tiny import Tiny, pictures, views


def make(**kwargs) -> LoRot:
    torch.manual_seed(0)
    return LoRot(Tiny(), views(), num_classes=3, **kwargs).eval()


def draw(n: int, seed: int = 0) -> Draw:
    return Draw(torch.arange(n) + 1000 * seed)


def test_a_turned_patch_equals_rot90_of_the_slice():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(200, 3, 9, 12, generator=generator)
    side = torch.randint(1, 10, (200,), generator=generator)
    top, left = ((torch.rand(200, generator=generator) * (extent - side + 1)).long() for extent in (9, 12))
    turns = torch.randint(0, 4, (200,), generator=generator)
    out, expected = rotate_patch(x, top, left, side, turns), x.clone()
    for i, (t, c, s, k) in enumerate(zip(top, left, side, turns, strict=True)):
        expected[i, :, t : t + s, c : c + s] = torch.rot90(x[i, :, t : t + s, c : c + s], int(k), (1, 2))
    assert torch.equal(out, expected)
    assert torch.equal(rotate_patch(out, top, left, side, (4 - turns) % 4), x)  # turned back


def test_explicit_turns_the_quadrant_that_the_label_names():
    x = torch.randn(64, 2, 8, 8)
    out, label = turned_patch(x, draw(64), "explicit")
    assert set(label.tolist()) == set(range(16))
    corners = [(slice(0, 4), slice(0, 4)), (slice(0, 4), slice(4, 8)), (slice(4, 8), slice(0, 4)), (slice(4, 8), slice(4, 8))]
    back = out.clone()
    for i, name in enumerate(label.tolist()):
        rows, columns = corners[name // 4]
        back[i, :, rows, columns] = torch.rot90(out[i, :, rows, columns], -(name % 4), (1, 2))
    assert torch.equal(back, x)


def test_implicit_turns_squares_of_every_place_and_size():
    x = torch.arange(8 * 10.0).view(1, 1, 8, 10).repeat(4000, 1, 1, 1)
    out, label = turned_patch(x, draw(4000), "implicit")
    assert set(label.tolist()) == set(range(4))
    moved = (out != x)[label == 2]  # a half turn moves every pixel but the middle one of odd sides
    rows, columns = moved.any(3).squeeze(1), moved.any(2).squeeze(1)
    sides = rows.sum(1)
    assert set(sides.tolist()) == {2, 3, 4}
    for side in (2, 3, 4):
        share = (sides == side).float().mean().item()
        assert share == pytest.approx(1 / 3, abs=0.06)
        assert set(rows[sides == side].int().argmax(1).tolist()) == set(range(8 - side + 1))  # the last place too
        assert set(columns[sides == side].int().argmax(1).tolist()) == set(range(10 - side + 1))
    assert torch.equal(out[label == 0], x[label == 0])


def test_whole_turns_everything():
    x = torch.randn(16, 2, 8, 8)
    out, label = turned_patch(x, draw(16), "whole")
    assert torch.equal(out, rotate(x, label))


@pytest.mark.parametrize(("variant", "outputs"), [("implicit", 4), ("explicit", 16), ("whole", 4)])
def test_the_loss_is_that_of_class_and_turn_on_one_forward(variant, outputs):
    method, batch = make(variant=variant, weight=0.3), pictures(6)
    x, label = turned_patch(method.views(batch, "weak")[0], method.views.draw(batch, 100), variant)
    h = method.backbone(x)
    expected = F.cross_entropy(method.head(h), batch["y"]) + 0.3 * F.cross_entropy(method.turn_head(h), label)
    torch.testing.assert_close(method.step(batch).loss, expected)
    assert method.turn_head.out_features == outputs


def test_nothing_is_turned_at_test_time():
    method, batch = make(), pictures(6)
    torch.testing.assert_close(method.logits(batch), method.head(method.backbone(method.views(batch, "clean")[0])))
    right, count = method.score(batch)["turn_accuracy"]
    assert 0 <= right <= count == 6


def test_another_epoch_turns_other_patches():
    method = make()
    labels = [method.turned(torch.zeros(50, 1, 8, 8), pictures(50, epoch=epoch))[1] for epoch in (0, 0, 1)]
    assert torch.equal(labels[0], labels[1])
    assert not torch.equal(labels[0], labels[2])
