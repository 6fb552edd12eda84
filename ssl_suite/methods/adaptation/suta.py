"""SUTA: make a CTC network surer of the one utterance it is to write down, then write it down and forget.

Idea: an utterance is many frames, enough to learn from alone. Take some gradient steps that make the frames which name a
symbol surer and keep classes from being confused with each other; transcribe; go back to the source model.

Paper: Lin, Li and Lee, "Listen, Adapt, Better WER: Source-free Single-utterance Test-time Adaptation for Automatic Speech
Recognition", Interspeech 2022, arXiv 2203.14222. Defaults are those of the official scripts (read in public copies of
them, not in the paper): ten steps of AdamW without decay at 2e-5, entropy weighted 0.3 and class confusion 0.7 at
temperature 2.5, all LayerNorms and the convolutional front-end with its projection learn. Minimum class confusion: Jin et
al., ECCV 2020, arXiv 1912.03699.

Deviations: scales and shifts of every kind of normalisation layer learn. Class confusion is divided by the model's number
of classes, as in the official code, which fixes it at 32. An utterance of blanks alone has no entropy term, where the
official loss is undefined. A non-finite utterance undoes the whole batch it came in. ``online`` is ours.

Batch: ``x`` (B, T) standardised, worked on one by one, each cut to its ``length`` (B,) where rows are padded.

Known limits: eleven forward and ten backward passes per utterance. The rate is that of wav2vec 2.0 Base; small networks
need more. Entropy rewards what a network is sure of already: where it hears mostly wrong symbols there is little to win.
An utterance must be long enough for a frame of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from ssl_suite.adapter import Adapter
from ssl_suite.batch import Tags
from ssl_suite.functional.adaptation import asking_gradient, entropy, mean_of_kept
from ssl_suite.functional.ctc import blank_past_end
from ssl_suite.nn.norm import Statistics, select_parameters
from ssl_suite.nn.snapshot import capture, restore


def class_confusion(logits: Tensor) -> Tensor:
    """How much the frames of an utterance confuse one class with another: arXiv 1912.03699, equations 3 to 7.

    Args:
        logits: (N, V), divided by the temperature.

    Returns:
        Scalar between 0 and 1: off the diagonal of the normalised class correlation, sure frames counting up to double.
    """
    p = logits.softmax(1)
    weight = 1.0 + (-entropy(logits).detach()).exp()
    correlation = p.T @ (p * (weight / weight.mean())[:, None])
    correlation = correlation / correlation.sum(1, keepdim=True)
    return 1.0 - correlation.diagonal().sum() / len(correlation)


def suta_loss(logits: Tensor, alpha: float, temperature: float) -> Tensor:
    """``alpha`` times the mean entropy of the frames that name a symbol, and class confusion for the rest.

    Args:
        logits: frames of one utterance, (N, V), class 0 the blank.
        alpha: weight of the entropy, in [0, 1].
        temperature: divides the logits.
    """
    softened = logits / temperature
    spoken = logits.argmax(1) != 0
    return alpha * mean_of_kept(entropy(softened), spoken) + (1.0 - alpha) * class_confusion(softened)


def select_listening(model: nn.Module, frontend: bool) -> list[nn.Parameter]:
    """Scales and shifts of normalisation layers, then what else the front-end of ``model`` or its ``backbone`` has.

    Raises:
        ValueError: a front-end is asked for and there is none.
    """
    chosen = select_parameters(model)
    if frontend:
        front = getattr(getattr(model, "backbone", model), "frontend", None)
        if not isinstance(front, nn.Module):
            raise ValueError(f"adapter.frontend=true: {type(model).__name__} has no module 'frontend', nor has its backbone; "
                             "set adapter.frontend=false, which leaves the normalisation layers to learn")
        known = {id(p) for p in chosen}
        chosen += [p for p in front.parameters() if id(p) not in known]
    return chosen


class Suta(Adapter):
    """Entropy and class confusion of one utterance's frames; adapts first, and starts from the source every time.

    Args:
        model: standardised waveforms (1, T) to scores of frames (1, N, V), class 0 the blank; copied.
        steps: gradient steps per utterance.
        alpha: weight of the entropy; class confusion has the rest.
        temperature: divides the logits in the loss.
        online: carry the weights along the stream.
        frontend: the front-end learns too: the attribute ``frontend`` of the model's backbone, or of the model.
        optimizer: makes an optimizer from parameters; AdamW with rate 2e-5 and no decay by default.
        autocast: dtype of forward passes.

    Raises:
        ValueError: a number out of range, a model in which nothing is selected, or one whose scores are not of frames.
    """

    tags = Tags("Lin et al., Interspeech 2022, arXiv 2203.14222", "adaptation", modalities=("speech",), batch="unlabeled",
                views=("clean",), target="text")
    order = "adapt_first"

    def __init__(self, model: nn.Module, *, steps: int = 10, alpha: float = 0.3, temperature: float = 2.5,
                 online: bool = False, frontend: bool = True, optimizer: Callable[..., torch.optim.Optimizer] | None = None,
                 autocast: Literal["bfloat16"] | None = None) -> None:
        if steps < 1 or not 0.0 <= alpha <= 1.0 or not temperature > 0.0:
            raise ValueError(f"adapter.steps={steps} must be at least 1, adapter.alpha={alpha} in [0, 1] and "
                             f"adapter.temperature={temperature} positive; the official ones are 10, 0.3 and 2.5")
        super().__init__(model, partial(select_listening, frontend=frontend),
                         optimizer or partial(torch.optim.AdamW, lr=2e-5, weight_decay=0.0), autocast=autocast)
        self.steps, self.alpha, self.temperature, self.online = steps, alpha, temperature, online

    def forward(self, x: Tensor, length: Tensor | None = None, stats: Statistics | None = None) -> Tensor:
        logits = [super(Suta, self).forward(row, None, stats) for row in utterances(x, length)]
        if logits[0].ndim != 3:
            raise ValueError(f"model=suta adapts networks that score frames (B, N, V), this one gives {tuple(logits[0].shape)}; "
                             "train one with model=ctc, or adapt a classifier with model=tent")
        return stacked(logits)

    def update(self, x: Tensor, length: Tensor | None, index: Tensor) -> tuple[Tensor, Tensor]:
        losses, logits = [], []
        learning = {str(i): p for i, p in enumerate(self.learning)}
        source = capture(learning, self.optimizer)
        for row in utterances(x, length):
            for _ in range(self.steps):
                loss = suta_loss(self(asking_gradient(row, self.model))[0], self.alpha, self.temperature)
                self.learn(loss)
            losses.append(loss.detach())
            logits.append(self.predict(row))
            if not self.online:
                restore(learning, self.optimizer, source)
        return torch.stack(losses).mean(), stacked(logits)


def utterances(x: Tensor, length: Tensor | None) -> list[Tensor]:
    """Rows (1, T) of waveforms, each without its padding."""
    return list(x.split(1)) if length is None else [x[i : i + 1, :n] for i, n in enumerate(length.tolist())]


def stacked(rows: list[Tensor]) -> Tensor:
    """Scores (1, N, V) of utterances as one batch, certain blanks filling up the shorter ones."""
    length = torch.tensor([row.shape[1] for row in rows], device=rows[0].device)
    return blank_past_end(pad_sequence([row[0] for row in rows], batch_first=True), length)
