"""A program of its own: reads a plan, lets espeak-ng speak it, writes arrays. Started by `ssl_suite.data.synthesis`.

espeak-ng takes the seed of its breath noise from the clock and keeps other state from one text to the next. With the
seed set before each text, one fresh process that speaks everything in the plan's order gives the same samples every
time.
"""

from __future__ import annotations

import ctypes
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from scipy.fft import next_fast_len
from scipy.signal import resample_poly

RATE = 16000
SYNCHRONOUS, UTF8 = 2, 1
PARAMETERS = {"rate": 1, "pitch": 3, "range": 4}
IPA_JOINED_BY_UNDERSCORE = (ord("_") << 8) | 0x02
STRESS = str.maketrans("", "", "ˈˌ-ːʲ̩")


class Speaker:
    """The espeak-ng library that comes with espeakng-loader.

    Raises:
        RuntimeError: the library cannot start.
    """

    def __init__(self) -> None:
        import espeakng_loader

        self.lib = ctypes.CDLL(str(espeakng_loader.get_library_path()))
        self.lib.espeak_Info.restype = ctypes.c_char_p
        self.lib.espeak_TextToPhonemes.restype = ctypes.c_char_p
        self.chunks: list[np.ndarray] = []
        callback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)
        self._receive = callback(self._take)
        self.rate = self.lib.espeak_Initialize(SYNCHRONOUS, 0, str(espeakng_loader.get_data_path()).encode(), 0x8000)
        if self.rate <= 0:
            raise RuntimeError("espeak-ng cannot start; reinstall espeakng-loader")
        self.lib.espeak_SetSynthCallback(self._receive)

    def _take(self, samples: Any, count: int, events: Any) -> int:
        if samples and count > 0:
            self.chunks.append(np.ctypeslib.as_array(samples, (count,)).copy())
        return 0

    def version(self) -> str:
        """Version of the library."""
        return str(self.lib.espeak_Info(None).decode())

    def say(self, item: dict[str, Any]) -> np.ndarray:
        """Waveform of one entry of the plan at 16 kHz without silence at its ends, float32 (T,)."""
        if self.lib.espeak_SetVoiceByName(item["voice"].encode()) != 0:
            raise RuntimeError(f"espeak-ng has no voice {item['voice']}")
        for name, number in PARAMETERS.items():
            self.lib.espeak_SetParameter(number, item[name], 0)
        self.lib.espeak_ng_SetRandSeed(ctypes.c_long(item["seed"]))
        self.chunks.clear()
        text = item["text"].encode()
        self.lib.espeak_Synth(text, ctypes.c_size_t(len(text) + 1), 0, 1, 0, UTF8, None, None)
        self.lib.espeak_Synchronize()
        x = resample_poly(np.concatenate(self.chunks).astype(np.float64), RATE, self.rate)
        loud = np.flatnonzero(np.abs(x) > 0.01 * np.abs(x).max())
        return x[max(loud[0] - 400, 0) : loud[-1] + 800]

    def phones(self, text: str) -> str:
        """Phones of a text in the phonetic alphabet, without stress and length, separated by spaces."""
        pointer = ctypes.c_char_p(text.encode())
        clauses = []
        while pointer.value is not None:
            spoken = self.lib.espeak_TextToPhonemes(ctypes.byref(pointer), UTF8, IPA_JOINED_BY_UNDERSCORE)
            clauses.append(spoken.decode())
        return " ".join(" ".join(clauses).replace("_", " ").translate(STRESS).split())


def add_noise(x: np.ndarray, snr_db: float | None, colour: float, rng: np.random.Generator) -> np.ndarray:
    """Add noise whose power falls with frequency to the power ``colour``, and bring the peak to half of int16."""
    if snr_db is not None:
        spectrum = np.fft.rfft(rng.standard_normal(next_fast_len(len(x), real=True)))
        noise = np.fft.irfft(spectrum * np.maximum(np.arange(len(spectrum)), 1.0) ** (-colour / 2))[: len(x)]
        x = x + noise * np.sqrt(np.mean(x**2) / np.mean(noise**2) / 10 ** (snr_db / 10))
    return np.round(x * (16000 / np.abs(x).max())).astype(np.int16)


def main(plan_file: str, folder: str) -> None:
    """Speak the plan and write audio, offsets, texts, phones, speakers, split (``.npy``) and ``meta.json``."""
    plan = json.loads(Path(plan_file).read_text())
    out, speaker = Path(folder), Speaker()
    pieces, phones = [], []
    for i, item in enumerate(plan["items"]):
        rng = np.random.default_rng((plan["seed"], i))
        pieces.append(add_noise(speaker.say(item), item["snr_db"], item["colour"], rng))
        phones.append(speaker.phones(item["text"]))
    np.save(out / "audio.npy", np.concatenate(pieces))
    np.save(out / "offsets.npy", np.cumsum([0, *map(len, pieces)]))
    np.save(out / "phones.npy", np.array(phones))
    for key, name in (("text", "texts"), ("voice", "speakers"), ("split", "split")):
        np.save(out / f"{name}.npy", np.array([item[key] for item in plan["items"]]))
    meta = {"rate": RATE, "espeak": speaker.version(), "request": plan["request"]}
    (out / "meta.json").write_text(json.dumps(meta, indent=1))


if __name__ == "__main__":
    main(*sys.argv[1:])
