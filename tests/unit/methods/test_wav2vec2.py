"""wav2vec 2.0 pre-training: gradients, masks, padding, precision, schedule of the temperature."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from ssl_suite.backbones.speech import Wav2Vec2
from ssl_suite.batch import Batch, Spec
from ssl_suite.functional.random import Draw, sample_keys
from ssl_suite.functional.span_masking import crop
from ssl_suite.methods.pretraining.wav2vec2 import Wav2Vec2Pretraining, scale_gradient
from ssl_suite.views import Views

SPEC = Spec("speech", (16000,), rate=16000)


def method(**options: Any) -> Wav2Vec2Pretraining:
    torch.manual_seed(0)
    backbone = Wav2Vec2(SPEC, extractor_mode="layer_norm", conv_channels=16, width=32, depth=1, heads=2,
                        position_kernel=8, position_groups=2, dropout=0.0, layerdrop=0.0)
    return Wav2Vec2Pretraining(backbone, Views({"weak": []}).standardise(SPEC),
                               **{"num_negatives": 10, "entries": 8, "codebook_dim": 16, "projection_dim": 16,
                                  "dropout": 0.0, **options})


def batch(lengths: list[int], first: int = 0) -> Batch:
    x = 0.1 * torch.randn(len(lengths), max(lengths), generator=torch.Generator().manual_seed(1))
    index = torch.arange(first, first + len(lengths))
    return {"x": x, "index": index, "epoch": torch.zeros_like(index), "length": torch.tensor(lengths)}


def test_every_parameter_gets_a_gradient_and_logs_are_in_range() -> None:
    m = method()
    out = m.step(batch([16000, 15000, 16000, 14000]))
    out.loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in m.parameters())
    assert 0.2 < out.logs["masked"] < 0.7
    assert 2.0 <= out.logs["code_perplexity"] <= 16.0
    assert out.logs["tau"] == 2.0
    total = out.logs["contrastive"] + 0.1 * (16 - out.logs["prob_perplexity"]) / 16 + 10 * out.logs["feature_penalty"]
    torch.testing.assert_close(out.loss, total)


def test_gradient_into_the_front_end_is_scaled() -> None:
    gradients = []
    for factor in (1.0, 0.1):
        m = method(gradient_scale=factor)
        m.step(batch([12000, 12000])).loss.backward()
        gradients.append([p.grad for p in m.backbone.net.feature_extractor.parameters()])
    for full, scaled in zip(*gradients, strict=True):
        torch.testing.assert_close(scaled, 0.1 * full, rtol=1e-3, atol=1e-6)
    x = torch.randn(5, requires_grad=True)
    assert torch.equal(scale_gradient(x, 0.1), x)


def test_hidden_frames_are_hidden_and_others_seen() -> None:
    m = method().eval()
    z, valid = m.extract(0.1 * torch.randn(2, 16000), None)
    mask, count = m.draw_mask(batch([16000, 16000]), valid)
    assert (mask.sum(1) == count).all()
    noise = torch.randn_like(z)
    torch.testing.assert_close(m.context(z, mask, valid), m.context(z + noise * mask.unsqueeze(-1), mask, valid))
    changed = m.context(z + noise * ~mask.unsqueeze(-1), mask, valid)
    assert not torch.allclose(m.context(z, mask, valid), changed), "control"


def test_same_batch_same_loss_and_padding_changes_nothing() -> None:
    m, b = method(), batch([16000, 12000])
    loss = m.step(b).loss
    torch.testing.assert_close(loss, m.step(b).loss, rtol=0, atol=0)
    m.eval()
    z, valid = m.extract(b["x"], b["length"])
    padded = torch.nn.functional.pad(b["x"] * (torch.arange(16000) < b["length"][:, None]), (0, 3200))
    z_padded, valid_padded = m.extract(padded, b["length"])
    assert torch.equal(valid.sum(1), valid_padded.sum(1))
    torch.testing.assert_close(z[valid], z_padded[valid_padded])
    blank, blank_padded = torch.zeros_like(valid), torch.zeros_like(valid_padded)
    torch.testing.assert_close(m.context(z, blank, valid)[valid],
                               m.context(z_padded, blank_padded, valid_padded)[valid_padded], rtol=1e-4, atol=1e-5)


def test_a_row_too_short_to_hide_anything_leaves_the_others_alone() -> None:
    m = method()
    with_short = m.step(batch([16000, 16000, 500]))
    assert with_short.loss.isfinite()
    assert with_short.logs["masked"] > 0.2
    with pytest.raises(ValueError, match="needs 3"):
        m.step(batch([500, 500]))


def test_crops_lie_inside_the_utterance() -> None:
    x = torch.arange(100.0).repeat(500, 1)
    length = torch.full((500,), 60)
    draw = Draw(sample_keys(0, torch.zeros(500, dtype=torch.int64), torch.arange(500), 102))
    piece, left = crop(x, length, draw, 20)
    assert piece.shape == (500, 20)
    assert (left == 20).all()
    assert piece.min() == 0
    assert piece.max() == 59
    assert (piece.diff(dim=1) == 1).all()
    assert crop(x, length, draw, 100)[0] is x
    m = method(crop=0.5)
    assert m.step(batch([16000, 6000])).loss.isfinite()


def test_temperature_falls_to_its_floor(monkeypatch: pytest.MonkeyPatch) -> None:
    m = method(tau=(2.0, 0.5), tau_decay=0.99)
    steps = iter([0, 1, 100, 1000])
    monkeypatch.setattr(Wav2Vec2Pretraining, "global_step", property(lambda self: next(steps)))
    assert [m.tau for _ in range(4)] == pytest.approx([2.0, 1.98, 2.0 * 0.99**100, 0.5])


def test_bfloat16_stays_close_to_float32() -> None:
    m, b = method(penalty_weight=0.0), batch([16000, 16000])
    full = m.step(b).loss
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = m.step(b).loss
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, full, rtol=0.05, atol=0.05)
