"""People look before they read: reconstructions, views and embeddings as PNG files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
import matplotlib
import numpy as np
import torch
from torch import Tensor

from ssl_suite.batch import Batch, Spec
from ssl_suite.evaluation import labelled_features
from ssl_suite.functional.maps import flattened
from ssl_suite.functional.segmentation import VOID
from ssl_suite.method import Method
from ssl_suite.nn.sharding import is_sharded

matplotlib.use("Agg")
from matplotlib import pyplot as plt


def show(axis: Any, sample: Tensor, spec: Spec) -> None:
    """Draw one sample (of the shape of the data) into an axis: a picture, a waveform or lines."""
    values = sample.detach().float().cpu()
    if spec.modality == "images":
        mean, std = torch.tensor(spec.mean).view(-1, 1, 1), torch.tensor(spec.std).view(-1, 1, 1)
        picture = (values * std + mean).clamp(0, 1)
        axis.imshow(picture[0] if len(picture) == 1 else picture[:3].permute(1, 2, 0), cmap="gray", vmin=0, vmax=1)
    else:
        axis.plot(np.atleast_2d(values.numpy()).T, linewidth=0.7)
    axis.set_xticks([])
    axis.set_yticks([])


def grid(path: Path, columns: Sequence[tuple[str, Sequence[Tensor]]], spec: Spec, note: str = "") -> None:
    """Save a table of samples: one titled column per kind, one row per sample."""
    rows = len(columns[0][1])
    wide = 1.5 if spec.modality == "images" else 3.0
    figure, axes = plt.subplots(rows, len(columns), figsize=(wide * len(columns), 1.4 * rows + 0.5), squeeze=False)
    for c, (title, samples) in enumerate(columns):
        axes[0, c].set_title(title, fontsize=9)
        for r, sample in enumerate(samples):
            show(axes[r, c], sample, spec)
    figure.suptitle(note, fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def scatter(path: Path, flat: np.ndarray, y: np.ndarray | None, title: str) -> None:
    """Save points (N, 2), coloured by class (N,) where there are classes."""
    figure, axis = plt.subplots(figsize=(5.5, 4.5))
    if y is None:
        axis.scatter(flat[:, 0], flat[:, 1], s=6)
    else:
        dots = axis.scatter(flat[:, 0], flat[:, 1], c=y, s=6, cmap="tab10" if y.max() < 10 else "turbo")
        axis.legend(*dots.legend_elements(num=min(10, int(y.max()) + 1)), fontsize=7, loc="best")
    axis.set_title(title, fontsize=9)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def unpatch(patches: Tensor, spec: Spec, token_grid: Sequence[int]) -> Tensor:
    """Patches (N, P) as one picture: images (C, H, W); others as bands over time (P, N)."""
    if spec.modality != "images":
        return patches.T
    rows, cols = token_grid
    channels, height, width = spec.shape
    ph, pw = height // rows, width // cols
    return patches.view(rows, cols, channels, ph, pw).permute(2, 0, 3, 1, 4).reshape(channels, height, width)


class Pictures(L.Callback):
    """Writes ``pictures/*.png`` at the end of training: what the method saw, made and separates.

    Args:
        folder: run folder.
        samples: rows of a picture.
        points: samples in the embedding map.
    """

    def __init__(self, folder: str, samples: int = 6, points: int = 1000) -> None:
        self.folder, self.samples, self.points = Path(folder) / "pictures", samples, points

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        data = getattr(trainer, "datamodule", None)
        if data is not None and trainer.is_global_zero and isinstance(pl_module, Method) and not is_sharded(pl_module):
            self.draw(pl_module, data)

    def draw(self, method: Method, data: Any) -> None:
        """All pictures of a method that has its weights whole."""
        self.folder.mkdir(parents=True, exist_ok=True)
        part = "test" if "test" in data.parts else "train"
        batch = next(iter(data.clean_loader(part, data.parts[part][1][: self.samples], shard=False)))
        batch = {k: v.to(method.device) if isinstance(v, Tensor) else v for k, v in batch.items()}
        method.eval()
        with torch.no_grad():
            if hasattr(method, "reconstruct"):
                self.reconstructions(method, batch, data.spec)
            if method.tags.target == "mask":
                self.segments(method, batch, data.spec)
            if len(method.tags.views) > 1 or method.tags.joint_embedding:
                self.view_table(method, batch, data.spec)
            if data.parts["train"][0].targets is not None and "test" in data.parts:
                self.embedding(method, data)

    def reconstructions(self, method: Any, batch: Batch, spec: Spec) -> None:
        """``reconstruction.png``: input, masked, reconstruction."""
        made = method.reconstruct(batch, "clean")
        clean = method.backbone.patches(method.views(batch, "clean")[0])
        mean, var = clean.mean(-1, keepdim=True), clean.var(-1, keepdim=True)
        rebuilt = made.prediction.float() * (var + 1e-6).sqrt() + mean if method.norm_targets else made.prediction.float()
        hidden = made.mask.unsqueeze(-1)
        triples = [clean, clean.masked_fill(hidden, 0.0), torch.where(hidden, rebuilt, clean)]
        columns = [[unpatch(p, spec, method.backbone.grid) for p in patches] for patches in triples]
        path = self.folder / "reconstruction.png"
        if spec.modality == "images":
            grid(path, list(zip(("input", "masked", "reconstruction"), columns, strict=True)), spec,
                 "each hidden patch in the contrast of the true one" if method.norm_targets else "")
        else:
            self.bands(path, columns)

    @staticmethod
    def bands(path: Path, columns: list[list[Tensor]]) -> None:
        """Reconstructions of speech and series: patch content over time."""
        rows = len(columns[0])
        figure, axes = plt.subplots(rows, 3, figsize=(9, 1.3 * rows + 0.5), squeeze=False)
        for c, (title, pieces) in enumerate(zip(("input", "masked", "reconstruction"), columns, strict=True)):
            axes[0, c].set_title(title, fontsize=9)
            for r, piece in enumerate(pieces):
                axes[r, c].imshow(piece.cpu(), aspect="auto", origin="lower")
                axes[r, c].set_axis_off()
        figure.tight_layout()
        figure.savefig(path, dpi=120)
        plt.close(figure)

    def segments(self, method: Method, batch: Batch, spec: Spec) -> None:
        """``segmentation.png``: input, true mask and prediction, a colour for each class and none where no class counts."""
        x, predicted = method.views(batch, "clean")[0].cpu(), method.logits(batch).argmax(1).cpu()
        figure, axes = plt.subplots(len(x), 3, figsize=(4.5, 1.4 * len(x) + 0.8), squeeze=False)
        colours = plt.get_cmap("tab10" if spec.num_classes <= 10 else "tab20", spec.num_classes)
        for row, picture, *masks in zip(axes, x, batch["y"].cpu(), predicted, strict=True):
            show(row[0], picture, spec)
            for axis, mask in zip(row[1:], masks, strict=True):
                axis.imshow(np.ma.masked_equal(mask.numpy(), VOID), cmap=colours, vmin=-0.5, vmax=spec.num_classes - 0.5,
                            interpolation="nearest")
                axis.set_axis_off()
        for axis, title in zip(axes[0], ("input", "truth", "prediction"), strict=True):
            axis.set_title(title, fontsize=9)
        patches = [plt.Rectangle((0, 0), 1, 1, color=colours(c)) for c in range(spec.num_classes)]
        figure.legend(patches, spec.classes, loc="lower center", ncols=4, fontsize=7, frameon=False)
        figure.tight_layout(rect=(0, 0.12 if spec.num_classes > 4 else 0.05, 1, 1))
        figure.savefig(self.folder / "segmentation.png", dpi=120)
        plt.close(figure)

    def view_table(self, method: Method, batch: Batch, spec: Spec) -> None:
        """``views.png``: the clean sample beside the views the method trains on."""
        kinds = ("clean", *method.tags.views)
        grid(self.folder / "views.png", list(zip(kinds, method.views(batch, *kinds), strict=True)), spec)

    def embedding(self, method: Method, data: Any) -> None:
        """``embedding.png``: test features on their first two principal axes, coloured by class."""
        points, y = labelled_features(method, data, "test", self.points)
        scatter(self.folder / "embedding.png", flattened(points), y, "test features, first two principal axes")
