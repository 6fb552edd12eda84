"""I-JEPA against the formula written out block by block, and the traps of its family."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from ssl_suite.batch import Batch, Spec
from ssl_suite.functional.block_masking import random_blocks
from ssl_suite.functional.random import Draw
from ssl_suite.methods.pretraining.ijepa import IJEPA, context_of
from ssl_suite.nn.transformer import sincos_2d
from ssl_suite.testing import tiny_batch, tiny_views
from tests.parity.test_mae import PICTURES, SERIES, series, vit
from tests.parity.tiny import gradients


def make(spec: Spec = PICTURES, kind: type[IJEPA] = IJEPA, **options: Any) -> Any:
    backbone = vit() if spec is PICTURES else series()
    torch.manual_seed(1)
    small = {"view": "clean", "predictor_width": 32, "predictor_depth": 1, "targets": 3}
    method = kind(backbone, tiny_views(spec), **{**small, **options})
    with torch.no_grad():
        for p in method.teacher.parameters():
            p.mul_(1.1).add_(0.01)  # a teacher unlike the student
    return method


def masks(method: IJEPA, batch: Batch) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The masks of a step: target blocks (B, K, 16), context tokens and which of them exist."""
    draw = method.views.draw(batch, 100)
    blocks = random_blocks(draw, method.targets, (4, 4), method.target_scale, method.target_aspect)
    block = random_blocks(draw, 1, (4, 4), method.context_scale, (1.0, 1.0))[:, 0]
    return blocks, *context_of(draw, blocks, block, 8)


def test_value_and_gradient_are_those_of_the_formula() -> None:
    method, batch = make(), tiny_batch(PICTURES, 5)
    twin = copy.deepcopy(method)
    loss = method.step(batch).loss
    loss.backward()
    blocks, kept, seen = masks(twin, batch)
    (x,) = twin.views(batch, "clean")
    net, table, total = twin.predictor, sincos_2d(4, 4, 32), torch.zeros(())
    with torch.no_grad():
        h = twin.teacher.tokens(x)
        h = (h - h.mean(-1, keepdim=True)) / (h.var(-1, unbiased=False, keepdim=True) + 1e-5).sqrt()
    for b in range(5):
        ids = kept[b, seen[b]]
        context = net.embed(twin.backbone.encode(twin.backbone.embed(x[b:b + 1])[:, ids])[0, 1:]) + table[ids]
        for mask in blocks[b]:
            wanted = mask.nonzero().flatten()
            queries = net.mask_token + table[wanted]
            out = net.head(net.transformer(torch.cat([context, queries])[None])[0, len(ids):])
            d = (out - h[b, wanted]).abs()
            total = total + torch.where(d < 1, 0.5 * d.square(), d - 0.5).mean() / (5 * len(blocks[b]))
    total.backward()
    torch.testing.assert_close(loss, total)
    theirs = gradients(twin)
    assert theirs.keys() == gradients(method).keys()
    for name, grad in gradients(method).items():
        torch.testing.assert_close(grad, theirs[name], atol=1e-6, rtol=1e-4)


def test_the_context_shows_nothing_of_the_targets() -> None:
    method, batch = make(), tiny_batch(PICTURES, 64)
    blocks, kept, seen = masks(method, batch)
    taken = blocks.any(1).gather(1, kept)
    assert not (taken & seen).any()
    assert (seen.sum(1) >= 1).all()
    assert len({tuple(row.sort().values.tolist()) for row in kept}) > 30, "every sample has a context of its own"


def test_where_targets_leave_nothing_a_token_is_shown_all_the_same() -> None:
    everything = torch.ones(2, 1, 6, dtype=torch.bool)
    valid = torch.tensor([[True] * 6, [True, False, False, False, False, False]])
    kept, seen = context_of(Draw(torch.arange(2)), everything, everything[:, 0], 3, valid)
    assert (seen.sum(1)).tolist() == [3, 1]
    assert kept[1, 0] == 0


def test_the_target_encoder_is_judged_and_shares_nothing() -> None:
    method, batch = make(), tiny_batch(PICTURES, 4)
    assert method.encoder is method.teacher
    torch.testing.assert_close(method(batch), method.teacher(method.views(batch, "clean")[0]))
    torch.testing.assert_close(method.step(batch).features, method(batch))
    own = {p.untyped_storage().data_ptr() for p in method.backbone.parameters()}
    assert not own & {p.untyped_storage().data_ptr() for p in method.teacher.parameters()}
    method.step(batch).loss.backward()
    assert all(p.grad is None for p in method.teacher.parameters())


def test_momentum_rises_to_one_in_a_line() -> None:
    method = make(momentum=0.9)
    assert [method.momentum(t, 100) for t in (0, 25, 100)] == pytest.approx([0.9, 0.925, 1.0])


def test_padding_changes_nothing() -> None:
    method, batch = make(SERIES).eval(), tiny_batch(SERIES, 4)
    batch["length"] = torch.tensor([40, 20, 8, 4])
    dirty = {**batch, "x": torch.where(torch.arange(40) < batch["length"][:, None, None], batch["x"], 50.0)}
    torch.testing.assert_close(method.step(dirty).loss, method.step(batch).loss)
    assert method.step(batch).loss.isfinite()


def test_a_wrong_share_is_named() -> None:
    with pytest.raises(ValueError, match=r"max_context.*1\.5"):
        make(max_context=1.5)
