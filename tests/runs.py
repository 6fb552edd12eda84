"""Tiny data on disk and short runs of the whole program, in this process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import OmegaConf

from ssl_suite.batch import Tags
from ssl_suite.run import fit
from tests.configs import composed

QUICK = ("debug=two_steps", "trainer.precision=32-true", "data.batch_size=8", "data.mu=2")


def images(folder: Path) -> Path:
    """48 coloured pictures of 8x8 pixels in 3 classes, train and test."""
    rng = np.random.default_rng(0)
    arrays = {}
    for part, n in (("train", 36), ("test", 12)):
        y = np.arange(n) % 3
        arrays[f"{part}_labels"] = y
        arrays[f"{part}_images"] = (rng.integers(0, 120, (n, 8, 8, 3)) + 60 * y[:, None, None, None]).astype(np.uint8)
    np.savez(folder / "images.npz", **arrays)
    return folder / "images.npz"


def speech(folder: Path, text: bool = False) -> Path:
    """36 waveforms of 0.2 to 0.4 s at 8 kHz, end to end; their pitch is their class."""
    rng = np.random.default_rng(1)
    lengths = rng.integers(1600, 3200, 36)
    y = np.arange(36) % 3
    waves = [3000 * np.sin(np.arange(n) * 0.2 * (1 + c)) + rng.normal(0, 300, n) for n, c in zip(lengths, y, strict=True)]
    labels: dict[str, Any] = {"texts": np.array(["ab", "ba a", "cab"])[y]} if text else {"labels": y}
    np.savez(folder / "speech.npz", audio=np.concatenate(waves).astype(np.int16), offsets=np.concatenate([[0], lengths.cumsum()]),
             rate=8000, **labels)
    return folder / "speech.npz"


def series(folder: Path) -> Path:
    """36 series of two channels and 32 steps in 3 classes."""
    rng = np.random.default_rng(2)
    y = np.arange(36) % 3
    x = np.sin(np.arange(32) * 0.3 * (1 + y[:, None, None])) + rng.normal(0, 0.1, (36, 2, 32))
    np.savez(folder / "series.npz", series=x.astype(np.float32), labels=y)
    return folder / "series.npz"


def masks(folder: Path) -> Path:
    """36 coloured pictures of 16x16 pixels with masks of 3 classes, a border of which does not count."""
    rng = np.random.default_rng(3)
    y = np.kron(rng.integers(0, 3, (36, 4, 4)), np.ones((4, 4), int)).astype(np.uint8)
    x = (rng.integers(0, 60, (36, 16, 16, 3)) + 80 * y[..., None]).astype(np.uint8)
    y[:, 0] = 255
    np.savez(folder / "masks.npz", images=x, masks=y, mask_names=np.array(["sky", "road", "car"]))
    return folder / "masks.npz"


def few_labels(tags: Tags) -> list[str]:
    """Overrides that leave a method of labelled and unlabelled samples a few labels."""
    if tags.batch != "semi":
        return []
    return ["data.labels=4"] if tags.target == "mask" else ["data.labels_per_class=2"]


def tiny_data(modality: str, folder: Path, target: str | None = None) -> list[str]:
    """Overrides that choose the embedded digits, a tiny file of another modality, or data with what is to be predicted."""
    if target == "action":
        return ["data=point_reach", "data.states=48", "data.test_states=16"]
    if target == "mask":
        return ["data=segmentation_arrays", f"data.path={masks(folder)}"]
    if modality == "images":
        return ["data=digits", "data.test_fraction=0.1"]
    if modality == "series":
        return ["data=series_arrays", f"data.path={series(folder)}"]
    return ["data=speech_arrays", f"data.path={speech(folder, text=target == 'text')}"]


def run(folder: Path, *overrides: str, quick: bool = True) -> Path:
    """A finished run folder."""
    folder.mkdir(parents=True, exist_ok=True)
    fit(OmegaConf.create(composed(*overrides, *(QUICK if quick else ()), folder=str(folder))), folder)
    return folder
