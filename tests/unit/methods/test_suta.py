"""SUTA on the suite's CTC networks: padding, what learns, what is refused; and the scores of transcripts."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import nn

from ssl_suite.deploy import Deployed
from ssl_suite.functional.ctc import blank_past_end, greedy_decode
from ssl_suite.methods.adaptation.suta import Suta
from ssl_suite.scoring import mistakes, wanted, word_mistakes
from tests.unit.methods.test_ctc import LETTERS, TEXTS, method, spoken

ADAM = partial(torch.optim.Adam, lr=1e-3)


def adapter(**options: Any) -> Suta:
    return Suta(Deployed(method()), **{"steps": 2, "optimizer": ADAM, **options})


def test_an_utterance_is_transcribed_as_if_it_came_alone() -> None:
    batch, many, one = spoken(TEXTS), adapter(), adapter()
    logits, report = many.predict_and_adapt(batch["x"], batch["length"])
    assert report.verdict == "ok"
    assert report.n_used == len(TEXTS)
    for i, n in enumerate(batch["length"].tolist()):
        alone = one.predict_and_adapt(batch["x"][i : i + 1, :n])[0][0]
        assert torch.equal(logits[i, : len(alone)], alone)
        assert (logits[i, len(alone) :].argmax(1) == 0).all()


def test_padding_says_blank_in_the_scores_of_a_run() -> None:
    m, batch = method().eval(), spoken(TEXTS)
    logits, (scores, length) = m.logits(batch), m.emissions(batch)
    assert greedy_decode(logits, torch.full_like(length, logits.shape[1])) == greedy_decode(scores, length)
    filled = blank_past_end(torch.ones(2, 4, 3), torch.tensor([4, 1]))
    assert (filled[0] == 1).all()
    assert (filled[1, 0] == 1).all()
    assert (filled[1, 1:].argmax(1) == 0).all()
    assert filled.isfinite().all()


def test_predict_is_the_source_model() -> None:
    m, batch = method().eval(), spoken(TEXTS)
    with torch.no_grad():
        torch.testing.assert_close(adapter().predict(batch["x"], batch["length"]), Deployed(m)(batch["x"], batch["length"]),
                                   rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("frontend", [False, True])
def test_what_learns(frontend: bool) -> None:
    a, batch = adapter(online=True, frontend=frontend), spoken(TEXTS)
    before = {k: v.clone() for k, v in a.model.named_parameters()}
    assert a.adapt(batch["x"], batch["length"]).verdict == "ok"
    moved = {k for k, v in a.model.named_parameters() if not torch.equal(v, before[k])}
    front = {k for k in before if "feature_extractor" in k or "feature_projection" in k}
    norms = {k for k in before if "norm" in k}
    assert norms <= moved
    assert moved == (norms | front if frontend else norms)


def test_online_learns_on_and_the_loss_falls() -> None:
    batch, a = spoken(TEXTS), adapter(online=True, steps=5)
    losses = [a.adapt(batch["x"], batch["length"]).loss for _ in range(3)]
    assert losses[0] > losses[1] > losses[2]
    episodic = adapter(steps=5)
    assert episodic.adapt(batch["x"], batch["length"]) == episodic.adapt(batch["x"], batch["length"])


@pytest.mark.parametrize(("key", "value"), [("steps", 0), ("alpha", 1.5), ("temperature", 0.0)])
def test_bad_values_are_named(key: str, value: float) -> None:
    with pytest.raises(ValueError, match=rf"adapter\.{key}={value}"):
        adapter(**{key: value})


def test_other_models_are_refused() -> None:
    net = nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8), nn.Linear(8, 3))
    with pytest.raises(ValueError, match=r"adapter\.frontend=false"):
        Suta(net)
    with pytest.raises(ValueError, match="model=tent"):
        Suta(net, frontend=False).adapt(torch.randn(2, 8))


def scores(texts: list[str]) -> torch.Tensor:
    """Certain scores that decode to texts: each symbol, then a blank."""
    rows = torch.zeros(len(texts), 2 * max(map(len, texts)), len(LETTERS) + 1)
    for row, text in zip(rows, texts, strict=True):
        row[:, 0] = 1.0
        for i, symbol in enumerate(text):
            row[2 * i, 1 + LETTERS.index(symbol)] = 2.0
    return rows


def test_mistakes_of_letters_and_words() -> None:
    batch = spoken(["abcd", "ab cd", "a"])
    heard, better = scores(["abd", "ab d a", "bcd"]), scores(["abcd", "ab c", ""])
    assert mistakes(heard, batch) == [1, 3, 3]
    assert mistakes(better, batch) == [0, 1, 1]
    assert wanted(batch) == [4, 5, 1]
    assert word_mistakes(heard, better, batch, LETTERS) == [(1, 1, 0), (2, 2, 1), (1, 1, 1)]
    assert word_mistakes(heard, better, batch, LETTERS[:4]) == []


def test_mistakes_of_classes() -> None:
    batch = {"x": torch.zeros(3, 1), "y": torch.tensor([0, 2, 1])}
    assert mistakes(torch.eye(3), batch) == [0, 1, 1]
    assert wanted(batch) == [1, 1, 1]
