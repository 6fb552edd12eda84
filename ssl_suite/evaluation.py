"""Frozen features of a data module's samples, and the probes that judge them beside two references."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import lightning as L
import numpy as np
import torch
from rich.progress import track
from torch import Tensor, nn

from ssl_suite.batch import Batch, Spec
from ssl_suite.functional.archive import dtw_accuracy, svm_probe
from ssl_suite.functional.probes import probe_scores
from ssl_suite.functional.spectrum import alignment, alpha_req, lidar, rankme, uniformity
from ssl_suite.views import to_float

Embed = Callable[[Batch], Tensor]


def subset(indices: np.ndarray, samples: int | None) -> np.ndarray:
    """At most ``samples`` of the indices, evenly spread and always the same ones."""
    if samples is None or len(indices) <= samples:
        return indices
    return indices[np.random.default_rng(29).permutation(len(indices))[:samples]]


@torch.no_grad()
def features(embed: Embed, data: Any, part: str, samples: int | None = None, device: torch.device | None = None,
             title: str = "") -> np.ndarray:
    """Representations of a part's samples in order, (N, D) float32.

    Args:
        embed: maps a batch to (B, D).
        data: a data module that was set up.
        part: ``train``, ``val`` or ``test``.
        samples: take at most so many.
        device: where to compute.
        title: shows a progress bar under that title.
    """
    loader = data.clean_loader(part, subset(data.parts[part][1], samples), shard=False)
    out = []
    for batch in track(loader, description=title, transient=True) if title else loader:
        batch = {key: value.to(device) if isinstance(value, Tensor) else value for key, value in batch.items()}
        out.append(embed(batch).float().cpu().numpy())
    return np.concatenate(out)


def classes(data: Any, part: str, samples: int | None = None) -> np.ndarray:
    """True classes of the samples that `features` takes."""
    source, indices = data.parts[part]
    assert source.targets is not None
    return source.targets[subset(indices, samples)].astype(np.int64)


def labelled_features(method: L.LightningModule, data: Any, part: str,
                      samples: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Features and classes of a part, by the method's encoder in evaluation mode."""
    training = method.training
    method.eval()
    try:
        return features(method, data, part, samples, method.device), classes(data, part, samples)
    finally:
        method.train(training)


def raw_features(spec: Spec) -> Embed:
    """Features without any learning: pixels, mean and deviation of the log-mel bands over time, or the padded series."""
    if spec.modality != "speech":
        size = int(np.prod(spec.shape))

        def flat(batch: Batch) -> Tensor:
            x = to_float(batch["x"]).flatten(1)
            return nn.functional.pad(x, (0, size - x.shape[1])) if spec.modality == "images" else _padded(batch["x"], spec)

        return flat
    from ssl_suite.backbones.speech import LogMel

    mel = LogMel(spec)

    def bands(batch: Batch) -> Tensor:
        length = batch.get("length")
        frames = mel(to_float(batch["x"]), length)
        if length is None:
            return torch.cat([frames.mean(2), frames.std(2)], dim=1)
        count = mel.frame_lengths(length).clamp_min(2)
        valid = (torch.arange(frames.shape[2]) < count[:, None])[:, None]
        mean = (frames * valid).sum(2, keepdim=True) / count[:, None, None]
        var = ((frames - mean).square() * valid).sum(2) / (count - 1)[:, None]
        return torch.cat([mean.squeeze(2), var.sqrt()], dim=1)

    return bands


def _padded(x: Tensor, spec: Spec) -> Tensor:
    return nn.functional.pad(x.float(), (0, spec.shape[-1] - x.shape[-1])).flatten(1)


def judge(embed: Embed, data: Any, seed: int, samples: int | None, device: torch.device | None = None,
          title: str = "", svm: bool = False) -> dict[str, float]:
    """Scores of an embedding, of its probes and of its spectrum.

    The probes are fitted on the training part's true labels and measured on the test part; the spectrum is that of at most 5000
    training samples.
    """
    train = features(embed, data, "train", samples, device, title)
    test = features(embed, data, "test", samples, device)
    parts = train, classes(data, "train", samples), test, classes(data, "test", samples)
    probes = probe_scores(*parts, seed) | ({"svm": svm_probe(*parts)} if svm else {})
    return probes | spectrum_scores(train[subset(np.arange(len(train)), 5000)])


def spectrum_scores(h: np.ndarray) -> dict[str, float]:
    """``rankme`` and ``alpha_req`` of features (N, D); without the latter where too few directions are left to draw a line."""
    found = {"rankme": rankme(h), "alpha_req": alpha_req(h)[0]}
    return {name: value for name, value in found.items() if np.isfinite(value)}


def view_scores(embed: Embed, data: Any, objects: int = 1000, count: int = 10) -> dict[str, float]:
    """How views of a sample lie among those of others: ``lidar``, ``alignment``, ``uniformity`` of the test part's features.

    Args:
        embed: maps a batch to (B, D), drawing the views by the batch's ``epoch``.
        data: a data module that was set up.
        objects: samples at most.
        count: views of each. LiDAR's paper takes 1000 x 50; the figure grows and falls with both.
    """
    def views(batch: Batch) -> Tensor:
        return torch.stack([embed({**batch, "epoch": torch.full_like(batch["index"], i)}) for i in range(count)], dim=1)

    h = features(views, data, "test", objects)
    return {"lidar": lidar(h), "alignment": alignment(h[:, 0], h[:, 1]), "uniformity": uniformity(h[:, 0])}


def dtw_score(data: Any, samples: int | None) -> float:
    """Accuracy on the test part of the nearest training series by dynamic time warping, over valid steps, in the data's units."""
    series: dict[str, list[np.ndarray]] = {}
    y: dict[str, np.ndarray] = {}
    for part in ("train", "test"):
        loader = data.clean_loader(part, subset(data.parts[part][1], samples), shard=False)
        series[part] = [row[:, :n].numpy() for batch in loader
                        for row, n in zip(batch["x"].float(), batch.get("length", torch.full((len(batch["x"]),),
                                          batch["x"].shape[-1])).tolist(), strict=True)]
        y[part] = classes(data, part, samples)
    return dtw_accuracy(series["train"], y["train"], series["test"], y["test"])
