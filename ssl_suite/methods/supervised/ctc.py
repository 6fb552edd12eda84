"""CTC: fine-tune an encoder of speech, or train one from scratch, to write down what is said.

Idea: one linear layer names a symbol or "nothing" at every frame; the loss sums over all ways in which the frames can
spell the transcript, so that no alignment is needed.

Paper: Graves et al., "Connectionist Temporal Classification", ICML 2006; fine-tuning as in wav2vec 2.0 (Baevski et
al., NeurIPS 2020, arXiv 2006.11477, section 3.2 and appendix B): the convolutional front-end stays as it was
pre-trained, the whole encoder rests while the head finds its feet, spans of frames and channels are hidden in training.

Deviations: the vector that hides frames is learned anew after ``init_from``, which loads a backbone; fairseq goes on with
that of pre-training, as does scripts/spoken_ctc.py. Backbones other than wav2vec 2.0 get no masks here: hide parts of the
input by views (`TimeMask`).

Batch: ``x`` (B, T), ``index`` (B,), symbols ``y`` (B, L) padded with -1, ``y_length`` (B,), with ``epoch`` and
``length`` (B,) where present. Symbol s of the vocabulary is class s + 1; class 0 is the blank.

Known limits: greedy decoding, no language model. While the encoder rests its parameters get no gradient, so several
processes need a strategy that allows unused parameters. PyTorch's loss on a GPU reads the lengths back to the host.
"""

from __future__ import annotations

import string
from collections.abc import Sequence
from typing import Unpack

import torch
from torch import Tensor, nn

from ssl_suite.backbones.speech import Wav2Vec2
from ssl_suite.batch import Backbone, Batch, StepOutput, Tags
from ssl_suite.functional.ctc import BOUNDARIES, blank_past_end, ctc_loss, errors, greedy_decode, too_short, words
from ssl_suite.functional.random import Draw
from ssl_suite.functional.span_masking import span_mask
from ssl_suite.method import Method, Training
from ssl_suite.views import Views

MASK_STREAM = 100


class CTC(Method):
    """Transcription by connectionist temporal classification.

    The score is pooled over the evaluation set: ``cer`` where every symbol is a letter, apostrophe or word boundary,
    else ``per`` (phones), and ``wer`` where the vocabulary has a word boundary (space or ``|``).

    Args:
        backbone: any backbone of speech with ``tokens`` and ``token_lengths``.
        views: kind ``weak`` is used in training, ``clean`` in evaluation.
        vocabulary: symbols of the transcripts, without the blank.
        freeze_frontend: keep the convolutions of a wav2vec 2.0 backbone as they are; False trains from scratch.
        freeze_share: share of the run in which only the head learns, in [0, 1).
        mask_prob: share of hidden frames if spans never overlapped; 0 hides none.
        mask_length: frames of a span.
        channel_prob: share of hidden channels likewise; 0 hides none.
        channel_length: channels of a span.
        training: optimizer and schedule; see `Method`.

    Raises:
        ValueError: there is no vocabulary, or ``freeze_share`` lies outside [0, 1).
    """

    tags = Tags("Graves et al., ICML 2006; Baevski et al., NeurIPS 2020, arXiv 2006.11477", "supervised",
                modalities=("speech",), batch="labeled", backbone="waveform", views=("weak",), target="text")

    def __init__(self, backbone: Backbone, views: Views, *, vocabulary: Sequence[str], freeze_frontend: bool = True,
                 freeze_share: float = 0.0, mask_prob: float = 0.65, mask_length: int = 10, channel_prob: float = 0.25,
                 channel_length: int = 64, **training: Unpack[Training]) -> None:
        super().__init__(backbone, views, **training)
        if not vocabulary:
            raise ValueError("CTC needs data with transcripts, these have an empty vocabulary; choose data=spoken")
        if not 0.0 <= freeze_share < 1.0:
            raise ValueError(f"freeze_share must lie in [0, 1), got {freeze_share}")
        self.vocabulary = tuple(vocabulary)
        self.freeze_share = freeze_share
        self.mask_prob, self.mask_length = mask_prob, mask_length
        self.channel_prob, self.channel_length = channel_prob, channel_length
        self.head = nn.Linear(backbone.num_features, len(self.vocabulary) + 1)
        if isinstance(backbone, Wav2Vec2):
            backbone.net.feature_extractor.requires_grad_(not freeze_frontend)
            if mask_prob:
                self.mask_embedding = nn.Parameter(torch.rand(backbone.num_features))

    @property
    def head_only(self) -> bool:
        """Whether the encoder rests at this step."""
        if not self.freeze_share:
            return False
        return self.global_step < self.freeze_share * self.trainer.estimated_stepping_batches

    def step(self, batch: Batch) -> StepOutput:
        (x,) = self.views(batch, "weak")
        draw = self.views.draw(batch, MASK_STREAM) if self.training else None
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.head_only):
            tokens, length = self.tokens(x, batch.get("length"), draw)
        loss = ctc_loss(self.head(tokens), length, batch["y"], batch["y_length"])
        lost = too_short(length, batch["y"], batch["y_length"]).float().mean()
        return StepOutput(loss, {"too_short": lost})

    def tokens(self, x: Tensor, length: Tensor | None, draw: Draw | None = None) -> tuple[Tensor, Tensor]:
        """Encoder output (B, N, D) and its valid frames (B,); parts are hidden where there is a draw."""
        n = torch.full_like(x[:, 0], x.shape[1], dtype=torch.int64) if length is None else length
        if draw is None or not isinstance(self.backbone, Wav2Vec2):
            return self.backbone.tokens(x, length), self.backbone.token_lengths(n)
        z, _ = self.backbone.extract(x)
        frames = self.backbone.token_lengths(n)
        h = self.hide(self.backbone.project(z), frames, draw)
        return self.backbone.contextualise(h, None if length is None else frames), frames

    def hide(self, h: Tensor, frames: Tensor, draw: Draw) -> Tensor:
        """Features (B, N, D) with spans of frames replaced by the mask vector and spans of channels by zero."""
        if self.mask_prob:
            valid = torch.arange(h.shape[1], device=h.device) < frames[:, None]
            mask = span_mask(draw, valid, self.mask_prob, self.mask_length)
            h = torch.where(mask.unsqueeze(-1), self.mask_embedding.to(h.dtype), h)
        if self.channel_prob:
            channels = torch.ones_like(h[:, 0], dtype=torch.bool)
            hidden = span_mask(draw, channels, self.channel_prob, self.channel_length, min_spans=0)
            h = h.masked_fill(hidden.unsqueeze(1), 0.0)
        return h

    def emissions(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Scores (B, N, V + 1) of clean samples, class 0 the blank, and their valid frames (B,)."""
        tokens, length = self.tokens(self.views(batch, "clean")[0], batch.get("length"))
        return self.head(tokens), length

    def logits(self, batch: Batch) -> Tensor:
        """Scores (B, N, V + 1) of clean samples; frames past the end of a row say blank."""
        return blank_past_end(*self.emissions(batch))

    def transcribe(self, batch: Batch) -> list[list[int]]:
        """Symbols of each sample by greedy decoding; waits for the device."""
        return greedy_decode(*self.emissions(batch))

    def score(self, batch: Batch) -> dict[str, tuple[Tensor, int]]:
        hypotheses = self.transcribe(batch)
        references = [row[:n] for row, n in zip(batch["y"].tolist(), batch["y_length"].tolist(), strict=True)]
        counts = {self.symbol_rate: errors(references, hypotheses)}
        if set(BOUNDARIES) & set(self.vocabulary):
            counts["wer"] = errors([words(row, self.vocabulary) for row in references],
                                   [words(row, self.vocabulary) for row in hypotheses])
        return {name: (torch.tensor(float(wrong), device=self.device), count)
                for name, (wrong, count) in counts.items()}

    @property
    def symbol_rate(self) -> str:
        """Name of the error rate of single symbols."""
        letters = {*string.ascii_letters, "'", *BOUNDARIES}
        return "cer" if letters.issuperset(self.vocabulary) else "per"
