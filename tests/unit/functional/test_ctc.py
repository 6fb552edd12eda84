"""CTC: decoding examples, transcripts that do not fit, pooled error rates against jiwer."""

from __future__ import annotations

import jiwer
import pytest
import torch
import torch.nn.functional as F

from ssl_suite.functional.ctc import ctc_loss, errors, greedy_decode, too_short, words


def emissions(*rows: list[int], classes: int = 4) -> torch.Tensor:
    return F.one_hot(torch.tensor(rows), classes).float()


@pytest.mark.parametrize(("frames", "length", "symbols"), [
    ([0, 1, 1, 0, 1, 2], 6, [0, 0, 1]),     # a blank parts two equal symbols
    ([1, 1, 1, 1, 1, 1], 6, [0]),           # repetitions merge
    ([0, 0, 0, 0, 0, 0], 6, []),            # blanks only
    ([3, 2, 1, 2, 3, 3], 3, [2, 1, 0]),     # padding is not read
    ([3, 2, 1, 2, 3, 3], 0, []),
])
def test_greedy_decoding(frames: list[int], length: int, symbols: list[int]) -> None:
    assert greedy_decode(emissions(frames), torch.tensor([length])) == [symbols]


def test_transcripts_that_do_not_fit() -> None:
    y = torch.tensor([[0, 0, 1], [0, 1, 0], [2, 2, -1], [1, -1, -1]])
    y_length = torch.tensor([3, 3, 2, 1])
    assert too_short(torch.tensor([3, 3, 3, 0]), y, y_length).tolist() == [True, False, False, True]
    fits = ctc_loss(torch.zeros(1, 4, 4), torch.tensor([4]), y[:1], y_length[:1])
    fails = ctc_loss(torch.zeros(1, 4, 4), torch.tensor([3]), y[:1], y_length[:1])
    assert fits > 0
    assert fails == 0, "a transcript that does not fit must add nothing"


def test_pooled_error_rates_agree_with_jiwer() -> None:
    references = ["the cat sat", "on", "a very long mat indeed"]
    hypotheses = ["the hat", "on on on", "a very mat indead"]
    wrong, count = errors([r.split() for r in references], [h.split() for h in hypotheses])
    assert wrong / count == pytest.approx(jiwer.wer(references, hypotheses))
    wrong, count = errors(references, hypotheses)
    assert wrong / count == pytest.approx(jiwer.cer(references, hypotheses))
    rates = [jiwer.wer(r, h) for r, h in zip(references, hypotheses, strict=True)]
    assert sum(rates) / 3 != pytest.approx(jiwer.wer(references, hypotheses)), "control: the mean of rates differs"


def test_words_are_parted_at_the_boundary() -> None:
    assert words([0, 1, 2, 2, 1], ["a", "b", " "]) == ["ab", "b"]
    assert words([0, 1, 2, 0], ["a", "b", "|"]) == ["ab", "a"]
