"""The smallest data, views and backbones that a method can be tried on."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from ssl_suite.batch import Batch, Modality, Spec
from ssl_suite.functional.random import Draw
from ssl_suite.functional.segmentation import VOID
from ssl_suite.views import Views

SHAPES: dict[str, tuple[int, ...]] = {"images": (1, 8, 8), "speech": (1600,), "series": (2, 32)}
ODD_SHAPES: dict[str, tuple[int, ...]] = {"images": (3, 8, 12), "speech": (1777,), "series": (3, 37)}
CLASSES = ("a", "b", "c")
LETTERS = ("d", "e", "f", " ")
NUM_SAMPLES = 1000


def tiny_spec(modality: Modality, odd: bool = False, target: str | None = "class") -> Spec:
    """A description of tiny samples; ``odd`` gives non-square pictures and odd lengths."""
    shape = (ODD_SHAPES if odd else SHAPES)[modality]
    channels = 1 if modality == "speech" else shape[0]
    return Spec(modality, shape, CLASSES if target in ("class", "mask", None) else (), LETTERS if target == "text" else (),
                rate=1600 if modality == "speech" else 0, mean=(0.5,) * channels if modality == "images" else (0.0,) * channels,
                std=(0.25,) * channels if modality == "images" else (1.0,) * channels, num_samples=NUM_SAMPLES,
                actions=2 if target == "action" else 0, masks=target == "mask")


def tiny_batch(spec: Spec, size: int = 8, start: int = 0, labels: bool = True, seed: int = 0) -> Batch:
    """A batch of samples whose class shows in their values, so that a method can learn it.

    Args:
        spec: what the samples look like.
        size: samples B.
        start: index of the first sample; samples are a function of their index.
        labels: give ``y``, and ``action`` and ``next`` where there are actions.
        seed: another seed, other samples.
    """
    generator = torch.Generator().manual_seed(1_000 * seed + start)
    index = torch.arange(start, start + size)
    kind = index % 3
    x = torch.randn(size, *spec.shape, generator=generator) * 0.3
    ramp = torch.linspace(0, 6.28, spec.shape[-1])
    wave = torch.sin(ramp * (1 + kind).view(-1, *(1,) * len(spec.shape)))
    x = x + wave
    batch: Batch = {"index": index, "epoch": torch.zeros(size, dtype=torch.long)}
    if spec.modality == "images":
        batch["x"] = (x * 50 + 128).clamp(0, 255).to(torch.uint8)
    elif spec.modality == "speech":
        batch["x"] = (x * 6000).clamp(-32768, 32767).to(torch.int16)
        batch["length"] = torch.full((size,), spec.shape[-1])
    else:
        batch["x"] = x
    if labels and spec.actions:
        batch["action"] = torch.stack([kind - 1.0, 1.0 - kind], dim=1) / 2
        batch["next"], batch["y"] = batch["x"].roll(1, -1), batch["action"] * 0.8
    elif labels and spec.masks:
        batch["y"] = ((wave > 0.5).long() + 2 * (wave < -0.5).long()).expand_as(x)[:, 0].to(torch.uint8)
        batch["y"][:, 0, 0] = VOID
    elif labels and spec.vocabulary:
        batch["y"] = torch.stack([kind, 2 - kind], dim=1)
        batch["y_length"] = torch.full((size,), 2)
    elif labels:
        batch["y"] = kind
    return batch


class Noise:
    """Adds noise: the one augmentation of the tiny views."""

    def __call__(self, x: Tensor, draw: Draw, length: Tensor | None) -> Tensor:
        return x + 0.1 * draw.normal(*x.shape[1:])

    def mask(self, y: Tensor, draw: Draw) -> Tensor:
        return y


def tiny_views(spec: Spec) -> Views:
    """Views whose every kind adds a little noise."""
    return Views({kind: [Noise()] for kind in ("weak", "strong", "crop", "local")}).standardise(spec)


def tiny_backbone(kind: Literal["features", "tokens", "maps", "waveform"], spec: Spec) -> nn.Module:
    """The smallest backbone of a kind for samples of a spec."""
    from ssl_suite.backbones import images, segmentation, series, speech

    if kind == "waveform":
        return speech.Wav2Vec2(spec, width=32, depth=1, heads=2, conv_channels=16, conv_layers=((10, 5), (3, 2), (3, 2)),
                               position_kernel=8, position_groups=2, dropout=0.0, layerdrop=0.0)
    if kind == "maps":
        return segmentation.UNet(spec, width=8, depth=2)
    if spec.modality == "images":
        if kind == "tokens":
            return images.ViT(spec, patch_size=4 if spec.shape[1] % 4 == 0 else 1, width=32, depth=2, heads=2)
        return images.ConvNet(spec, widths=(8, 16), num_features=16)
    if spec.modality == "speech":
        if kind == "tokens":
            return speech.SpeechTransformer(spec, n_mels=8, patch_frames=2, width=32, depth=2, heads=2)
        return speech.SpeechConvNet(spec, n_mels=8, widths=(8, 16))
    if kind == "tokens":
        return series.SeriesTransformer(spec, patch=4, width=32, depth=2, heads=2)
    return series.SeriesConvNet(spec, width=16, depth=2, num_features=16)
