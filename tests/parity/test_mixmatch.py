"""MixMatch and ReMixMatch against their algorithm boxes, sample by sample."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from ssl_suite.batch import Batch, Spec
from ssl_suite.functional.random import Draw
from ssl_suite.methods.self_training.mixmatch import MixMatch
from ssl_suite.methods.self_training.remixmatch import ReMixMatch
from tests.parity.tiny import Tiny, gradients, semi, views

PICTURES = Spec("images", (1, 8, 8), ("a", "b", "c"))
SERIES = Spec("series", (1, 8, 8), ("a", "b", "c"))  # the tiny backbone takes no other shape; only the modality counts


def mixmatch(**kwargs) -> MixMatch:
    return MixMatch(Tiny(), views(weak=0.3, strong=1.0), num_classes=3, **kwargs)


def remixmatch(spec: Spec = PICTURES, **kwargs) -> ReMixMatch:
    return ReMixMatch(Tiny(), views(weak=0.3, strong=1.0), spec=spec, num_classes=3, **kwargs)


def seeded(make: Callable[..., MixMatch], progress: float = 0.25, **kwargs) -> MixMatch:
    torch.manual_seed(0)
    method = make(rampup=0.5, **kwargs)
    with torch.no_grad():
        method.head.weight.mul_(5.0)
    method.progress = progress
    return method


def classify(method: MixMatch, x: Tensor) -> Tensor:
    return method.head(method.backbone(x))


def sharpened(p: Tensor) -> Tensor:
    return p**2 / (p**2).sum(1, keepdim=True)  # T = 0.5


def blended(method: MixMatch, batch: Batch, xs: list[Tensor], ts: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Row by row: the larger share of itself, the rest of its place in the shuffled rows."""
    parts = [batch["labeled"], *[batch["unlabeled"]] * (len(xs) - 1)]
    draw = Draw(torch.cat([method.views.draw(part, 100 + i).keys for i, part in enumerate(parts)]))
    share = method.mix.draw_shares(draw)
    order = sorted(range(len(share)), key=draw.bits(1)[:, 0].tolist().__getitem__)
    x, t = torch.cat(xs), torch.cat(ts)
    return (torch.stack([share[i] * x[i] + (1 - share[i]) * x[j] for i, j in enumerate(order)]),
            torch.stack([share[i] * t[i] + (1 - share[i]) * t[j] for i, j in enumerate(order)]))


def mixmatch_written_out(m: MixMatch, batch: Batch) -> Tensor:
    (x,), (u1, u2) = m.views(batch["labeled"], "weak"), m.views(batch["unlabeled"], "weak", "weak")
    p = classify(m, torch.cat([u1, u2])).softmax(1).detach()
    q = sharpened((p[:12] + p[12:]) / 2)
    rows, targets = blended(m, batch, [x, u1, u2], [torch.eye(3)[batch["labeled"]["y"]], q, q])
    out = classify(m, rows).softmax(1)
    supervised = -(targets[:6] * out[:6].log()).sum() / 6
    unsupervised = ((targets[6:] - out[6:]) ** 2).sum() / (3 * 24)
    return supervised + 0.5 * 100.0 * unsupervised


def remixmatch_written_out(m: ReMixMatch, batch: Batch) -> Tensor:
    (x,), (w, s1, s2) = m.views(batch["labeled"], "strong"), m.views(batch["unlabeled"], "weak", "strong", "strong")
    given = torch.eye(3)[batch["labeled"]["y"]]
    p = classify(m, w).softmax(1).detach()
    classes = 0.9 * torch.full((3,), 1 / 3) + 0.1 * given.mean(0)
    q = p * (classes + 1e-6) / (p.mean(0) + 1e-6)  # the running mean starts with this step
    q = sharpened(q / q.sum(1, keepdim=True))
    rows, targets = blended(m, batch, [x, w, s1, s2], [given, q, q, q])
    cross = -(targets * classify(m, rows).log_softmax(1)).sum(1)
    strong = -(q * classify(m, s1).log_softmax(1)).sum() / 12
    turns = m.views.draw(batch["unlabeled"], 200).integers(4, 1)[:, 0]
    turned = torch.stack([torch.rot90(row, int(k), (1, 2)) for row, k in zip(s1, turns, strict=True)])
    guessed = m.rotation_head(m.backbone(turned)).log_softmax(1)
    rotation = -sum(guessed[i, k] for i, k in enumerate(turns)) / 12
    return cross[:6].mean() + 0.5 * (1.5 * cross[6:].mean() + 0.4 * strong) + 0.3 * rotation


@pytest.mark.parametrize(("make", "written_out", "kwargs"), [
    (mixmatch, mixmatch_written_out, {}),
    (remixmatch, remixmatch_written_out, {"align_momentum": 0.9, "lambda_strong": 0.4, "lambda_rot": 0.3})])
def test_value_and_gradient_equal_the_algorithm(make, written_out, kwargs):
    method, batch = seeded(make, **kwargs), semi()
    twin = copy.deepcopy(method)
    out = method.step(batch)
    expected = written_out(twin, batch)
    out.loss.backward()
    expected.backward()
    torch.testing.assert_close(out.loss, expected)
    theirs = gradients(twin)
    assert set(theirs) == set(gradients(method))
    for name, grad in gradients(method).items():
        torch.testing.assert_close(grad, theirs[name], atol=1e-5, rtol=1e-3)


OFF = {mixmatch: {"lambda_u": 0.0}, remixmatch: {"lambda_u": 0.0, "lambda_strong": 0.0, "lambda_rot": 0.0}}


@pytest.mark.parametrize("make", OFF)
def test_without_unsupervised_weight_it_is_supervised_training(make):
    method, twin, batch = seeded(make, **OFF[make]), seeded(make, **OFF[make]), semi()
    method.mix.shares.fill_(1.0)
    out = method.step(batch)
    assert torch.equal(out.loss.detach(), out.logs["loss_sup"])
    assert out.logs["loss_unsup"] > 0.0
    twin.backbone.norm.eval()
    method.backbone.norm.eval()
    with torch.no_grad():
        method.backbone.norm.load_state_dict(twin.backbone.norm.state_dict())
    (x,) = twin.views(batch["labeled"], "weak" if make is mixmatch else "strong")
    plain = torch.nn.functional.cross_entropy(classify(twin, x), batch["labeled"]["y"])
    torch.testing.assert_close(method.step(batch).loss, plain)


@pytest.mark.parametrize("make", OFF)
def test_the_ramp_holds_back_the_guesses(make):
    method, batch = seeded(make, progress=0.0), semi()
    out = method.step(batch)
    rest = 0.5 * out.logs["loss_rot"] if make is remixmatch else 0.0
    torch.testing.assert_close(out.loss.detach(), out.logs["loss_sup"] + rest)
    assert seeded(make, progress=0.4).step(batch).loss > out.loss.detach()


@pytest.mark.parametrize("make", OFF)
def test_only_mixed_rows_move_the_running_statistics(make):
    method, batch, seen = seeded(make), semi(), []
    method.backbone.norm.register_forward_pre_hook(lambda module, args: seen.append((module.track_running_stats, args[0])))
    method.step(batch)
    (mixed,) = [x for tracked, x in seen if tracked]
    assert len(seen) == (2 if make is mixmatch else 4)
    assert len(mixed) == 6 + 12 * (2 if make is mixmatch else 3)
    torch.testing.assert_close(method.backbone.norm.running_mean, 0.1 * mixed.mean((0, 2, 3)))


@pytest.mark.parametrize("make", OFF)
def test_guesses_take_no_gradient_and_hidden_labels_are_not_used(make):
    batch = semi()
    method = seeded(make)
    out = method.step(batch)
    out.loss.backward()
    assert all(p.grad is None for p in [*method.ema_backbone.parameters(), *method.ema_head.parameters()])
    batch["unlabeled"]["y"] = torch.full((12,), -1)
    assert torch.equal(out.loss, seeded(make).step(batch).loss)


def test_what_has_no_quarter_turns_is_not_turned():
    assert remixmatch().turns
    for spec in (SERIES, Spec("images", (1, 8, 12), ("a", "b", "c"))):
        method = remixmatch(spec)
        assert not hasattr(method, "rotation_head")
        assert method.step(semi()).logs["loss_rot"] == 0.0


def test_mixed_rows_of_unequal_length_are_silent_behind_the_longer_one():
    method, seen = seeded(mixmatch), {}
    batch = semi()
    batch["labeled"]["x"] = batch["labeled"]["x"][..., :6]
    batch["labeled"]["length"] = torch.tensor([3, 4, 5, 6, 6, 2])
    batch["unlabeled"]["length"] = torch.arange(12) % 6 + 3
    plain = method.backbone.forward
    method.backbone.forward = lambda x, length=None: (seen.update(x=x, length=length), plain(x))[1]
    method.step(batch)
    assert seen["x"].shape == (30, 1, 8, 8)
    assert seen["length"].max() <= 8
    for row, steps in zip(seen["x"], seen["length"], strict=True):
        assert row[..., steps:].abs().sum() == 0
        assert row[..., steps - 1].abs().sum() > 0


@pytest.mark.parametrize(("make", "kwargs", "message"), [
    (mixmatch, {"rampup": 2.0}, r"model\.rampup=2"), (mixmatch, {"temperature": 0.0}, r"model\.temperature"),
    (mixmatch, {"mixup": 0.0}, r"model\.mixup=0"), (remixmatch, {"strong_views": 0}, r"model\.strong_views .* 0")])
def test_bad_arguments(make, kwargs, message):
    with pytest.raises(ValueError, match=message):
        make(**kwargs)
