"""SimMIM against plain loops, and by perturbation."""

from __future__ import annotations

import copy

import pytest
import torch

from ssl_suite.batch import Batch, Spec
from ssl_suite.methods.pretraining.simmim import SimMIM
from ssl_suite.testing import tiny_batch, tiny_views
from tests.parity.test_mae import PICTURES, SERIES, series, vit
from tests.parity.tiny import gradients


def make(spec: Spec = PICTURES, **options: object) -> SimMIM:
    return SimMIM(vit() if spec is PICTURES else series(), tiny_views(spec), **{"view": "clean", **options})


def test_value_and_gradient_are_those_of_the_loop() -> None:
    method, batch = make(), tiny_batch(PICTURES, 6)
    twin = copy.deepcopy(method)
    loss = method.step(batch).loss
    loss.backward()
    mask = twin.reconstruct(batch).mask
    (x,) = twin.views(batch, "clean")
    net, rows = twin.backbone.net, []
    for b in range(6):
        tokens = net.patch_embed(x[b:b + 1]).flatten(1, 2)[0]
        hidden = torch.stack([twin.mask_token if mask[b, i] else tokens[i] for i in range(16)])
        h = torch.cat([net.cls_token[0] + net.pos_embed[0, :1], hidden + net.pos_embed[0, 1:]])[None]
        rows.append(twin.head(net.norm(net.blocks(h)))[0, 1:])
    total, count = torch.zeros(()), 0
    for b in range(6):
        for i in range(16):
            if mask[b, i]:
                r, c = 2 * (i // 4), 2 * (i % 4)
                total = total + (rows[b][i] - x[b, :, r:r + 2, c:c + 2].flatten()).abs().sum()
                count += 4
    (total / count).backward()
    torch.testing.assert_close(loss, total / count)
    theirs = gradients(twin)
    assert theirs.keys() == gradients(method).keys()
    for name, grad in gradients(method).items():
        torch.testing.assert_close(grad, theirs[name], atol=1e-6, rtol=1e-4)


def test_cells_are_larger_than_tokens() -> None:
    mask = make(mask_ratio=0.5).reconstruct(tiny_batch(PICTURES, 6)).mask.view(6, 4, 4)
    assert torch.equal(mask, mask[:, ::2, ::2].repeat_interleave(2, 1).repeat_interleave(2, 2))
    assert (mask.flatten(1).sum(1) == 8).all()


def test_hidden_pixels_never_reach_the_encoder() -> None:
    method, batch = make().eval(), tiny_batch(PICTURES, 6)
    base = method.reconstruct(batch)
    pixels = base.mask.view(6, 1, 4, 4).repeat_interleave(2, 2).repeat_interleave(2, 3)
    other: Batch = {**batch, "x": torch.where(pixels, 255 - batch["x"], batch["x"])}
    assert torch.equal(method.reconstruct(other).prediction, base.prediction)
    assert not torch.equal(method.reconstruct(other).target, base.target)
    other = {**batch, "x": torch.where(pixels, batch["x"], 255 - batch["x"])}
    assert not torch.allclose(method.reconstruct(other).prediction, base.prediction, atol=1e-3), "the control"


def test_padding_is_neither_seen_nor_rebuilt() -> None:
    method, batch = make(SERIES).eval(), tiny_batch(SERIES, 4)
    batch["length"] = torch.tensor([40, 20, 8, 4])
    made = method.reconstruct(batch)
    assert made.valid is not None
    assert not (made.mask & ~made.valid).any()
    dirty = {**batch, "x": torch.where(torch.arange(40) < batch["length"][:, None, None], batch["x"], 50.0)}
    torch.testing.assert_close(method.step(dirty).loss, method.step(batch).loss)


@pytest.mark.parametrize("options", [{"mask_ratio": 0.0}, {"mask_ratio": 1.0}, {"unit": 0}])
def test_mistakes_are_told(options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=str(next(iter(options.values())))):
        make(**options)
