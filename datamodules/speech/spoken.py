"""The embedded speech set: synthetic voices, made on this machine, no download."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from datamodules.speech.speech_arrays import SpeechArraysDataModule
from ssl_suite.data.sources import Source
from ssl_suite.data.synthesis import Corpus, spoken_corpus


class SpokenCorpusDataModule(SpeechArraysDataModule):
    """Words or sentences spoken by espeak-ng at 16 kHz, with other voices in the test part.

    There are 78 voices: 6 accents of English, 13 speakers each.
    The corpus depends on ``utterances``, ``test_fraction``, ``snr_db`` and ``corpus_seed`` only and is kept in the
    user's cache folder (``SSL_SUITE_CACHE``, else ``~/.cache/ssl_suite``).

    Args:
        target: ``words`` (one word each, 20 classes), ``letters`` or ``phones`` (sentences with transcripts).
        utterances: number of recordings.
        test_fraction: share of recordings and of voices in the test part.
        snr_db: range of the ratio of speech to noise in decibels; None for no noise.
        corpus_seed: seed of the corpus, apart from the run's ``seed``.
        common: see `SourceDataModule`.

    Raises:
        ImportError: espeakng-loader is missing.
        ValueError: a size or a target that makes no sense.
    """

    def __init__(self, *, target: Literal["words", "letters", "phones"] = "words", utterances: int = 1000,
                 test_fraction: float = 0.25, snr_db: Sequence[float] | None = (5.0, 25.0), corpus_seed: int = 0,
                 **common: Any) -> None:
        if target not in ("words", "letters", "phones"):
            raise ValueError(f"data.target={target} must be 'words', 'letters' or 'phones'")
        words = target == "words"
        super().__init__("", target="class" if words else "text", y="phones" if target == "phones" else "texts",
                         units="phones" if target == "phones" else "chars", **common)
        low_high = None if snr_db is None else (float(snr_db[0]), float(snr_db[1]))
        self.corpus = Corpus("words" if words else "sentences", utterances, test_fraction, low_high, corpus_seed)

    def prepare_data(self) -> None:
        spoken_corpus(self.corpus)

    def sources(self) -> dict[str, Source]:
        self.path = spoken_corpus(self.corpus)
        return super().sources()
