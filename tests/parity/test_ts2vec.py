"""TS2Vec against its equations in plain loops, and its crops against series that are really cut."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from ssl_suite.backbones.series import SeriesConvNet
from ssl_suite.batch import Spec
from ssl_suite.functional.random import Draw
from ssl_suite.methods.pretraining.ts2vec import TS2Vec, hierarchical_contrast, overlapping_crops
from ssl_suite.testing import tiny_batch, tiny_views
from ssl_suite.views import Views

SPEC = Spec("series", (2, 33), mean=(0.0, 0.0), std=(1.0, 1.0))


def net() -> SeriesConvNet:
    torch.manual_seed(0)
    return SeriesConvNet(SPEC, width=8, depth=3, num_features=6, norm="none")


def draw(n: int, stream: int = 0) -> Draw:
    return Draw(torch.arange(n) * 31 + 5 + 1000 * stream)


def dual(r: list[list[Tensor]], other: list[list[Tensor]]) -> list[Tensor]:
    """Equations 1 and 2, their sum for every row and step of one view; rows may differ in length."""
    losses = []
    for i, row in enumerate(r):
        for t, v in enumerate(row):
            partner = v @ other[i][t]
            temporal = [v @ u for u in other[i]] + [v @ u for s, u in enumerate(row) if s != t]
            instance = [v @ w[t] for w in other if t < len(w)] + [v @ w[t] for j, w in enumerate(r) if j != i and t < len(w)]
            losses.append(-2 * partner + sum(torch.logsumexp(torch.stack(k), 0) for k in (temporal, instance)))
    return losses


def written_out(z: Tensor, length: Tensor) -> Tensor:
    """Algorithm 1: the mean over scales of the mean over steps, rows and directions; the two contrasts count half each."""
    views = [[list(row.T[:n]) for row, n in zip(view, length.tolist(), strict=True)] for view in z.chunk(2)]
    scales = []
    while any(views[0]):
        losses = dual(views[0], views[1]) + dual(views[1], views[0])
        scales.append(torch.stack(losses).mean() / 2)
        views = [[[torch.maximum(row[2 * t], row[2 * t + 1]) for t in range(len(row) // 2)] for row in view] for view in views]
    return torch.stack(scales).mean()


@pytest.mark.parametrize("length", [[9, 9, 9, 9], [9, 4, 1, 7], [8, 8, 8, 8], [2, 2, 2, 2]])
def test_loss_and_gradient_are_algorithm_one(length: list[int]) -> None:
    torch.manual_seed(0)
    z, n = torch.randn(8, 5, 11, dtype=torch.float64), torch.tensor(length)
    ours, theirs = z.clone().requires_grad_(), z.clone().requires_grad_()
    loss, expected = hierarchical_contrast(ours, n.repeat(2)), written_out(theirs, n)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    loss.backward()
    expected.backward()
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-5, atol=1e-7)
    assert ours.grad.abs().max() > 1e-3


def test_one_series_has_only_the_temporal_contrast() -> None:
    torch.manual_seed(0)
    z = torch.randn(2, 5, 4)
    assert hierarchical_contrast(z, torch.tensor([1, 1])).item() == pytest.approx(0.0, abs=1e-6)
    assert hierarchical_contrast(z, torch.tensor([4, 4])).item() > 0.1


def test_crops_lie_within_their_rows_and_share_lengths() -> None:
    n = torch.full((64,), 20)
    seen = []
    for stream in range(200):
        (a, a_length), (b, b_length), overlap = overlapping_crops(n, draw(64, stream))
        assert (a >= 0).all()
        assert (a <= b).all()
        assert torch.equal(a + a_length, b + overlap), "the first crop ends where the overlap does"
        assert (b_length >= overlap).all()
        assert (b + b_length <= n).all()
        assert len(overlap.unique()) == len(a_length.unique()) == len(b_length.unique()) == 1
        seen.append((int(overlap[0]), len(a.unique())))
    overlaps, places = zip(*seen, strict=True)
    assert min(overlaps) == 2
    assert max(overlaps) == 20
    assert len(set(overlaps)) == 19, "every length from 2 to T occurs"
    assert max(places) > 5, "each row lies elsewhere"


def test_short_rows_are_cropped_within_what_they_have() -> None:
    n = torch.tensor([20, 3, 2, 1])
    for stream in range(100):
        (a, a_length), (b, b_length), overlap = overlapping_crops(n, draw(4, stream))
        assert (overlap >= n.clamp_max(2)).all()
        assert (a >= 0).all()
        assert (torch.maximum(a + a_length, b + b_length) <= n).all()


@pytest.mark.parametrize("lengths", [None, [33, 12, 20, 33]])
def test_a_step_is_the_loss_of_rows_really_cut(lengths: list[int] | None) -> None:
    method = TS2Vec(net(), Views().standardise(SPEC), mask_prob=0.0)
    batch = tiny_batch(SPEC, 4, labels=False)
    if lengths is not None:
        batch["length"] = torch.tensor(lengths)
    n = torch.tensor(lengths or [33] * 4)
    (a, a_length), (b, b_length), overlap = overlapping_crops(n, method.views.draw(batch, 100))
    z = torch.zeros(8, 6, 33)
    for i, x in enumerate(batch["x"]):
        first = method.backbone.maps(x[None, :, a[i]:a[i] + a_length[i]])[0]
        second = method.backbone.maps(x[None, :, b[i]:b[i] + b_length[i]])[0]
        z[i, :, :overlap[i]] = first[:, -int(overlap[i]):]
        z[4 + i, :, :overlap[i]] = second[:, :overlap[i]]
    assert method.step(batch).loss.item() == pytest.approx(written_out(z.double(), overlap).item(), rel=1e-4)


def test_padding_plays_no_part() -> None:
    method = TS2Vec(net(), tiny_views(SPEC))
    batch = {**tiny_batch(SPEC, 4, labels=False), "length": torch.tensor([33, 12, 20, 33])}
    loss = method.step(batch).loss
    batch["x"] = torch.where(torch.arange(33) < batch["length"][:, None, None], batch["x"], 99.0)
    assert torch.equal(method.step(batch).loss, loss)


def test_half_of_the_steps_are_hidden_differently_in_each_crop() -> None:
    method = TS2Vec(net(), Views().standardise(SPEC))
    seen = []
    method.backbone.blocks[0].register_forward_pre_hook(lambda _, given: seen.append((given[0] == 0).all(1)))
    batch = tiny_batch(SPEC, 64, labels=False)
    method.step(batch)
    (_, a), (_, b), _ = overlapping_crops(torch.full((64,), 33), method.views.draw(batch, 100))
    for hidden, length in zip(seen, (a, b), strict=True):
        share = hidden[:, :int(length[0])].float().mean().item()
        assert abs(share - 0.5) < 5 * 0.5 / math.sqrt(64 * int(length[0]))
    assert not torch.equal(*seen)


def test_the_judged_weights_are_the_mean_over_the_steps() -> None:
    method = TS2Vec(net(), Views().standardise(SPEC))
    history = []
    for step in range(1, 5):
        history.append(method.backbone.entry.weight.detach().clone())
        with torch.no_grad():
            method.backbone.entry.weight.add_(step)
        method.update_teachers(step, 100)
    history.append(method.backbone.entry.weight.detach().clone())
    torch.testing.assert_close(method.encoder.entry.weight, torch.stack(history).mean(0))


def test_what_it_cannot_work_with_is_refused() -> None:
    with pytest.raises(ValueError, match=r"mask_prob=1\.0"):
        TS2Vec(net(), Views(), mask_prob=1.0)
    with pytest.raises(ValueError, match="backbone=series_convnet"):
        TS2Vec(torch.nn.Linear(2, 2), Views())
