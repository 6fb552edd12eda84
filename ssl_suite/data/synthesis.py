"""A spoken corpus from nothing: a small grammar, 78 synthetic voices, background noise; made once, then cached."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ssl_suite.config import require
from ssl_suite.data.cache import cache_dir, new_folder

FORMAT = 1
WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine",
         "yes", "no", "up", "down", "left", "right", "start", "stop", "open", "close")
ACCENTS = ("en-us", "en", "en-gb-scotland", "en-gb-x-rp", "en-029", "en-gb-x-gbclan")
VARIANTS = ("", *(f"+m{i}" for i in range(1, 8)), *(f"+f{i}" for i in range(1, 6)))
VERBS = ("open", "close", "find", "move", "paint", "clean", "carry", "show me")
DETERMINERS = ("the", "my", "this", "every")
COLOURS = ("red", "green", "blue", "white", "black")
NOUNS = ("door", "window", "table", "chair", "box", "book", "cup", "lamp", "clock", "garden gate")
PLACES = ("in the kitchen", "near the river", "under the stairs", "behind the house", "at the station")
DAYS = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")


@dataclass(frozen=True)
class Corpus:
    """What is to be spoken.

    Attributes:
        kind: ``words``, one of `WORDS` at a time, each equally often; or ``sentences`` of the grammar.
        utterances: number of recordings.
        test_fraction: share of the recordings and of the voices that make the test part; no voice is in both parts.
        snr_db: range of the ratio of speech to background noise in decibels; None for no noise.
        seed: seed of texts, voices and noise.
    """

    kind: Literal["words", "sentences"] = "words"
    utterances: int = 1000
    test_fraction: float = 0.25
    snr_db: tuple[float, float] | None = (5.0, 25.0)
    seed: int = 0


def sentence(rng: np.random.Generator) -> str:
    """One sentence of the grammar."""
    def pick(words: tuple[str, ...]) -> str:
        return str(words[int(rng.integers(len(words)))])

    thing = f"{pick(COLOURS)} {pick(NOUNS)}" if rng.random() < 0.4 else pick(NOUNS)
    template = int(rng.integers(4))
    if template == 0:
        return f"{pick(VERBS)} {pick(DETERMINERS)} {thing} {pick(PLACES)}"
    if template == 1:
        return f"bring {pick(WORDS[2:10])} {thing}s on {pick(DAYS)}".replace("boxs", "boxes")
    if template == 2:
        return "call " + " ".join(pick(WORDS[:10]) for _ in range(int(rng.integers(3, 6))))
    return f"{pick(VERBS)} {pick(DETERMINERS)} {thing}"


def plan(corpus: Corpus) -> list[dict[str, Any]]:
    """Text, voice, manner and noise of every recording, as a function of the request alone.

    Raises:
        ValueError: fewer than two recordings, or a fraction outside (0, 1).
    """
    if corpus.utterances < 2 or not 0 < corpus.test_fraction < 1:
        raise ValueError(f"data.utterances={corpus.utterances} must be at least 2, "
                         f"data.test_fraction={corpus.test_fraction} in (0, 1)")
    rng = np.random.default_rng((corpus.seed, FORMAT))
    voices = rng.permutation([accent + variant for accent in ACCENTS for variant in VARIANTS]).tolist()
    held = min(max(1, round(len(voices) * corpus.test_fraction)), len(voices) - 1)
    first_test = min(max(1, round(corpus.utterances * (1 - corpus.test_fraction))), corpus.utterances - 1)
    items = []
    for i in range(corpus.utterances):
        choice = voices[:held] if i >= first_test else voices[held:]
        items.append({
            "text": WORDS[i % len(WORDS)] if corpus.kind == "words" else sentence(rng),
            "voice": choice[int(rng.integers(len(choice)))], "split": "test" if i >= first_test else "train",
            "rate": int(rng.integers(120, 171)), "pitch": int(rng.integers(30, 71)), "range": int(rng.integers(20, 81)),
            "snr_db": None if corpus.snr_db is None else float(rng.uniform(*corpus.snr_db)), "colour":
            float(rng.uniform(0, 2)), "seed": i + 1,
        })
    return items


def spoken_corpus(corpus: Corpus) -> Path:
    """Folder of a corpus as arrays, made at the first call and read from the cache later.

    The folder is named by the request and the version of the voices; ``meta.json`` in it holds both.

    Raises:
        ImportError: espeakng-loader is missing.
        RuntimeError: the synthesis failed.
        ValueError: see `plan`.
    """
    require("espeakng_loader", extra="speech-synth")
    request = {**asdict(corpus), "format": FORMAT, "voices": importlib.metadata.version("espeakng-loader")}
    name = hashlib.sha256(json.dumps(request, sort_keys=True).encode()).hexdigest()[:16]
    folder = cache_dir() / "spoken" / f"{corpus.kind}-{name}"
    if not folder.exists():
        items = plan(corpus)
        with new_folder(folder) as work:
            script = work / "plan.json"
            script.write_text(json.dumps({"items": items, "seed": corpus.seed, "request": request}))
            _speak(script, work)
    return folder


def _speak(script: Path, folder: Path) -> None:
    program = str(Path(__file__).with_name("espeak.py"))  # by its path, without the suite, whose import takes seconds
    done = subprocess.run([sys.executable, "-P", program, str(script), str(folder)], capture_output=True, text=True,
                          check=False)
    if done.returncode != 0:
        raise RuntimeError(f"espeak-ng could not speak the corpus: {done.stderr.strip()[-500:]}")
