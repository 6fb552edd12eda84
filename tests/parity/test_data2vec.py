"""data2vec 2.0 against the formula written out mask by mask."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from ssl_suite.batch import Spec
from ssl_suite.functional.block_masking import kept_blocks
from ssl_suite.methods.pretraining.data2vec import Data2Vec, instance_norm
from ssl_suite.testing import tiny_batch, tiny_views
from tests.parity.test_mae import PICTURES, SERIES, series, vit
from tests.parity.tiny import gradients


def make(spec: Spec = PICTURES, **options: Any) -> Data2Vec:
    backbone = vit() if spec is PICTURES else series()
    torch.manual_seed(1)
    small = {"view": "clean", "masks": 3, "mask_ratio": 0.6, "block": 2, "top_layers": 2, "decoder_width": 16, "decoder_depth": 2,
             "conv_groups": 4}
    method = Data2Vec(backbone, tiny_views(spec), **{**small, **options})
    with torch.no_grad():
        for p in method.teacher.parameters():
            p.mul_(1.1).add_(0.01)  # a teacher unlike the student
    return method


def norm(h: torch.Tensor, dim: int) -> torch.Tensor:
    return (h - h.mean(dim, keepdim=True)) / (h.var(dim, unbiased=False, keepdim=True) + 1e-5).sqrt()


@pytest.mark.parametrize("spec", [PICTURES, SERIES], ids=["pictures", "series"])
def test_value_and_gradient_are_those_of_the_formula(spec: Spec) -> None:
    method, batch = make(spec), tiny_batch(spec, 4)
    twin = copy.deepcopy(method)
    loss = method.step(batch).loss
    loss.backward()
    (x,) = twin.views(batch, "clean")
    pictures = spec is PICTURES
    shape, n, count = ((4, 4), 16, 6) if pictures else ((1, 10), 10, 4)
    blocks = twin.teacher.net.blocks if pictures else twin.teacher.transformer.blocks
    with torch.no_grad():
        h = twin.teacher.embed(x)
        if pictures:
            h = torch.cat([twin.teacher.prefix_tokens().expand(4, -1, -1), h], dim=1)
        outputs = []
        for block in blocks:
            h = block(h)
            outputs.append(norm(h[:, 1:], 2) if pictures else norm(h, 1))
        target = (outputs[0] + outputs[1]) / 2
    draw = twin.views.draw(batch, 100).copies(3)
    kept = kept_blocks(draw, shape, 2, count)
    noise = 0.01 * draw.normal(n, 32)
    total, hidden = torch.zeros(()), 0
    for row in range(12):
        b, ids = row // 3, kept[row]
        tokens = noise[row].clone()
        tokens[ids] = twin.backbone.encode(twin.backbone.embed(x[b:b + 1])[:, ids])[0, int(pictures):]
        for i in range(2):
            out = twin.decoder.convs[i](tokens.T.reshape(1, -1, *(shape if pictures else (10,)))).flatten(2)[0].T
            out = torch.nn.functional.gelu(norm(out, 1))
            tokens = tokens + out if i else out
        error = (twin.decoder.head(tokens) - target[b]).square()
        for i in set(range(n)) - set(ids.tolist()):
            total, hidden = total + error[i].mean(), hidden + 1
    (total / hidden).backward()
    torch.testing.assert_close(loss, total / hidden)
    theirs = gradients(twin)
    assert theirs.keys() == gradients(method).keys()
    for name, grad in gradients(method).items():
        torch.testing.assert_close(grad, theirs[name], atol=1e-6, rtol=1e-3)


def test_masks_of_one_sample_differ_and_the_teacher_passes_once(monkeypatch: pytest.MonkeyPatch) -> None:
    method, batch = make(masks=5), tiny_batch(PICTURES, 4)
    rows: list[int] = []
    layers = method.teacher.layers
    monkeypatch.setattr(method.teacher, "layers", lambda tokens, valid=None: rows.append(len(tokens)) or layers(tokens, valid))
    assert method.step(batch).features.shape == (4, 32)
    assert rows == [4]
    (x,) = method.views(batch, "clean")
    _, mask = method.predict(batch, method.backbone.embed(x), None)
    assert mask.shape == (20, 16)
    assert (mask.sum(1) == 10).all()
    assert all(len(five.unique(dim=0)) > 1 for five in mask.view(4, 5, 16))


def test_only_the_top_layers_are_averaged() -> None:
    losses = [make(top_layers=k).step(tiny_batch(PICTURES, 4)).loss for k in (1, 2, 9)]
    assert losses[0] != losses[1]
    assert losses[1] == losses[2], "the net has two blocks"


def test_instance_norm_sees_no_padding() -> None:
    h = torch.randn(2, 6, 3)
    valid = torch.tensor([[True] * 6, [True] * 4 + [False] * 2])
    torch.testing.assert_close(instance_norm(h, valid)[1, :4], norm(h[1:, :4], 1)[0])


def test_padding_changes_nothing() -> None:
    method, batch = make(SERIES).eval(), tiny_batch(SERIES, 4)
    batch["length"] = torch.tensor([40, 20, 8, 4])
    dirty = {**batch, "x": torch.where(torch.arange(40) < batch["length"][:, None, None], batch["x"], 50.0)}
    torch.testing.assert_close(method.step(dirty).loss, method.step(batch).loss)
    x, length = batch["x"], batch["length"]
    _, mask = method.predict(batch, method.backbone.embed(x, length), method.backbone.patch_valid(x, length))
    assert mask.view(4, 3, 10).sum(2).tolist() == [[6] * 3, [3] * 3, [1] * 3, [0] * 3]


def test_momentum_rises_and_stays() -> None:
    method = make(momentum=(0.9, 0.99), ramp=0.5)
    assert [method.momentum(t, 100) for t in (0, 25, 50, 100)] == pytest.approx([0.9, 0.945, 0.99, 0.99])


@pytest.mark.parametrize(("options", "name"), [({"masks": 0}, "masks"), ({"mask_ratio": 1.0}, "mask_ratio"),
                                               ({"conv_groups": 5}, "conv_groups"), ({"kernel": 4}, "kernel")])
def test_mistakes_are_told(options: dict[str, float], name: str) -> None:
    with pytest.raises(ValueError, match=name):
        make(**options)
