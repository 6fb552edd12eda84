"""Transformer blocks and fixed positions."""

from __future__ import annotations

import math

import pytest
import torch
from timm.models.vision_transformer import Attention

from ssl_suite.nn.transformer import ShortAttention, Transformer, mean_pool, sincos_1d, sincos_2d, valid_steps


def test_sincos_1d_is_the_formula():
    table = sincos_1d(7, 6)
    for position in range(7):
        for i in range(3):
            angle = position / 10000 ** (2 * i / 6)
            assert table[position, i].item() == pytest.approx(math.sin(angle), abs=1e-5)
            assert table[position, 3 + i].item() == pytest.approx(math.cos(angle), abs=1e-5)
    torch.testing.assert_close(sincos_1d(3, 6), table[:3])


def test_sincos_2d_holds_column_and_row():
    table = sincos_2d(3, 5, 8).unflatten(0, (3, 5))
    torch.testing.assert_close(table[1, :, :4], sincos_1d(5, 4))
    torch.testing.assert_close(table[:, 2, 4:], sincos_1d(3, 4))
    assert len(table.flatten(0, 1).unique(dim=0)) == 15


def test_invalid_tokens_change_nothing_and_an_empty_row_is_finite():
    net, tokens = Transformer(16, 2, 2).eval(), torch.randn(2, 6, 16)
    valid = valid_steps(torch.tensor([4, 0]), 6)
    out = net(tokens, valid)
    torch.testing.assert_close(out[0, :4], net(tokens[:1, :4])[0], atol=1e-5, rtol=1e-5)
    assert out.isfinite().all()
    assert not torch.allclose(net(tokens)[0, :4], out[0, :4], atol=1e-3)


def test_mean_pool_counts_the_valid_tokens_only():
    tokens = torch.tensor([[[1.0], [3.0], [float("nan")]], [[5.0], [7.0], [9.0]]])
    valid = torch.tensor([[True, True, False], [False, False, False]])
    assert mean_pool(tokens, valid).tolist() == [[2.0], [0.0]]
    assert mean_pool(tokens[1:]).tolist() == [[7.0]]


def test_mistakes_are_told():
    with pytest.raises(ValueError, match="even width"):
        sincos_1d(3, 5)
    with pytest.raises(ValueError, match="multiple of 4"):
        sincos_2d(2, 2, 6)
    with pytest.raises(ValueError, match=r"width=10.*heads=4"):
        Transformer(10, 1, 4)


def attentions(most: int, monkeypatch: pytest.MonkeyPatch) -> tuple[ShortAttention, Attention]:
    torch.manual_seed(0)
    monkeypatch.setattr(ShortAttention, "most", most)
    ours, theirs = ShortAttention(32, 4, qkv_bias=True), Attention(32, 4, qkv_bias=True)
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("most", [12, 11])
def test_written_out_attention_is_attention(most, masked, monkeypatch):
    ours, theirs = attentions(most, monkeypatch)
    x = torch.randn(3, 12, 32)
    mask = torch.arange(12).expand(3, 1, 1, 12) < 9 if masked else None
    with torch.autocast("cpu", torch.bfloat16):
        outputs = [attention(x, attn_mask=mask) for attention in (ours, theirs)]
    assert ours.fused_attn == (most < 12)
    torch.testing.assert_close(*outputs, atol=0.02, rtol=0.02)
    gradients = [torch.autograd.grad(out.float().square().sum(), attention.qkv.weight)[0]
                 for out, attention in zip(outputs, (ours, theirs), strict=True)]
    torch.testing.assert_close(*gradients, atol=0.05 * gradients[1].abs().max().item(), rtol=0.0)


def test_masked_tokens_change_nothing_where_attention_is_written_out(monkeypatch):
    ours, _ = attentions(12, monkeypatch)
    x = torch.randn(3, 12, 32)
    mask = torch.arange(12).expand(3, 1, 1, 12) < 9
    other = torch.where(mask[0, 0, 0][:, None], x, torch.randn(3, 12, 32))
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(ours(x, attn_mask=mask)[:, :9], ours(other, attn_mask=mask)[:, :9], rtol=0.0, atol=0.0)


def test_attention_in_full_precision_stays_fused(monkeypatch):
    ours, theirs = attentions(12, monkeypatch)
    x = torch.randn(3, 12, 32)
    mask = torch.arange(12).expand(3, 1, 1, 12) < 9
    torch.testing.assert_close(ours(x), theirs(x), rtol=0.0, atol=0.0)
    torch.testing.assert_close(ours(x, attn_mask=mask), theirs(x, attn_mask=mask), rtol=0.0, atol=0.0)
    assert ours.fused_attn
