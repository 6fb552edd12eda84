"""CTC fine-tuning: what is frozen and when, masks, padding, names of the scores, and that it learns."""

from __future__ import annotations

import warnings
from typing import Any

import lightning as L
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from ssl_suite.backbones.speech import Wav2Vec2
from ssl_suite.batch import Batch, Spec
from ssl_suite.methods.supervised.ctc import CTC
from ssl_suite.optim import Constant
from ssl_suite.views import Views

LETTERS = ("a", "b", "c", "d", " ")
SPEC = Spec("speech", (8000,), vocabulary=LETTERS, rate=8000)


def method(vocabulary: tuple[str, ...] = LETTERS, **options: Any) -> CTC:
    torch.manual_seed(0)
    backbone = Wav2Vec2(SPEC, extractor_mode="layer_norm", conv_channels=16,
                        conv_layers=((40, 20), (3, 2), (3, 2), (2, 2)), width=32, depth=1, heads=2, position_kernel=8,
                        position_groups=2, dropout=0.0, layerdrop=0.0)
    return CTC(backbone, Views({"weak": []}).standardise(SPEC), vocabulary=vocabulary, **options)


def spoken(texts: list[str], symbol: int = 1600) -> Batch:
    """Each symbol a tone of its own, 0.2 s long; the space is silence."""
    time = torch.arange(symbol) / 8000
    tones = [torch.sin(2 * torch.pi * f * time) * 0.3 for f in (300, 600, 1100, 2000)] + [torch.zeros(symbol)]
    symbols = [[LETTERS.index(s) for s in text] for text in texts]
    length = torch.tensor([len(s) * symbol for s in symbols])
    longest = max(len(s) for s in symbols)
    x = torch.stack([torch.cat([tones[i] for i in s] + [torch.zeros((longest - len(s)) * symbol)]) for s in symbols])
    y = torch.tensor([s + [-1] * (longest - len(s)) for s in symbols])
    index = torch.arange(len(texts))
    return {"x": x, "length": length, "y": y, "y_length": torch.tensor([len(s) for s in symbols]), "index": index,
            "epoch": torch.zeros_like(index)}


TEXTS = ["abcd", "dcba bd", "cacb", "bad cab"]


def test_it_learns_four_utterances() -> None:
    m, b = method(freeze_frontend=False, mask_prob=0.0, channel_prob=0.0), spoken(TEXTS)
    optimizer = torch.optim.Adam(m.parameters(), lr=3e-3)
    for _ in range(150):
        optimizer.zero_grad()
        m.step(b).loss.backward()
        optimizer.step()
    m.eval()
    assert ["".join(LETTERS[s] for s in row) for row in m.transcribe(b)] == TEXTS
    assert {name: total.item() for name, (total, _) in m.score(b).items()} == {"cer": 0.0, "wer": 0.0}


def test_front_end_is_frozen_unless_told_otherwise() -> None:
    for frozen in (True, False):
        m = method(freeze_frontend=frozen)
        m.step(spoken(TEXTS)).loss.backward()
        front = [p.grad is None for p in m.backbone.net.feature_extractor.parameters()]
        assert all(front) if frozen else not any(front)
        assert all(p.grad is not None for p in m.parameters() if p.requires_grad)


def test_only_the_head_learns_at_first() -> None:
    m = method(freeze_share=0.5, optimizer=lambda groups: torch.optim.Adam(groups, lr=1e-2), schedule=Constant())
    moved: list[tuple[bool, bool]] = []

    class Watch(L.Callback):
        def on_train_batch_start(self, trainer: Any, module: Any, *_: Any) -> None:
            self.before = {n: p.detach().clone() for n, p in module.named_parameters()}

        def on_train_batch_end(self, trainer: Any, module: Any, *_: Any) -> None:
            changed = {n for n, p in module.named_parameters() if not torch.equal(p, self.before[n])}
            moved.append((any(n.startswith("backbone") for n in changed), any(n.startswith("head") for n in changed)))

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = L.Trainer(max_steps=4, accelerator="cpu", logger=False, enable_checkpointing=False,
                            enable_progress_bar=False, enable_model_summary=False, callbacks=[Watch()])
        trainer.fit(m, DataLoader([spoken(TEXTS)] * 4, batch_size=None))
    assert moved == [(False, True)] * 2 + [(True, True)] * 2


def test_masks_in_training_only() -> None:
    m, b = method(mask_prob=0.65, channel_length=8), spoken(TEXTS)
    train = m.step(b).loss
    b["epoch"] += 1
    assert not torch.equal(train, m.step(b).loss), "masks must differ between epochs"
    m.eval()
    evaluated = m.step(b).loss
    b["epoch"] += 1
    torch.testing.assert_close(evaluated, m.step(b).loss, rtol=0, atol=0)
    m.mask_embedding.data += 10.0
    torch.testing.assert_close(evaluated, m.step(b).loss, rtol=0, atol=0)


def test_padding_does_not_change_emissions() -> None:
    m, b = method().eval(), spoken(TEXTS)
    together, length = m.emissions(b)
    for i, n in enumerate(length.tolist()):
        alone = {k: v[i : i + 1] for k, v in b.items()}
        alone["x"] = alone["x"][:, : int(b["length"][i])]
        torch.testing.assert_close(m.emissions(alone)[0][0, :n], together[i, :n], rtol=1e-4, atol=1e-4)


def test_utterances_that_do_not_fit_are_counted() -> None:
    b = spoken(["ab", "abcd"])
    b["y"] = torch.tensor([[0] * 40, [0, 1] + [-1] * 38])
    b["y_length"] = torch.tensor([40, 2])
    out = method().step(b)
    assert out.logs["too_short"] == 0.5
    assert out.loss.isfinite()


@pytest.mark.parametrize(("vocabulary", "names"), [
    (("a", "b", "'", " "), {"cer", "wer"}), (("a", "b", "c", "|"), {"cer", "wer"}), (("a", "b", "c", "d"), {"cer"}),
    (("a", "ɪ", "tʃ", "d"), {"per"}), (("a", "ɪ", "tʃ", " "), {"per", "wer"}),
])
def test_names_of_the_scores(vocabulary: tuple[str, ...], names: set[str]) -> None:
    assert set(method(vocabulary).eval().score(spoken(["abc", "c"]))) == names


def test_any_backbone_with_tokens() -> None:
    class Frames(nn.Module):
        num_features = 10

        def tokens(self, x: torch.Tensor, length: torch.Tensor | None = None) -> torch.Tensor:
            return x.unfold(1, 10, 160)

        def token_lengths(self, length: torch.Tensor) -> torch.Tensor:
            return (length - 10) // 160 + 1

    m = CTC(Frames(), Views({"weak": []}).standardise(SPEC), vocabulary=LETTERS)
    assert m.step(spoken(TEXTS)).loss.isfinite()


@pytest.mark.parametrize("options", [{"vocabulary": ()}, {"freeze_share": 1.0}])
def test_bad_arguments(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        method(**options)
