"""What a sample costs as the work grows: time against batch, size, model, length and workers; memory against model."""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib
import torch
from torchvision.io import write_jpeg

from benches import ours, scaling
from benches.turns import Given, Maker, Piece, Watch, measure
from datamodules.images.image_folder import ImageFolderDataModule

matplotlib.use("Agg")
from matplotlib import pyplot as plt

PICTURE = Path(__file__).resolve().parents[2] / "docs" / "pictures" / "cost.png"
FILES = 512


def at(given: Given, watch: Watch, make: Maker, **changes: Any) -> Callable[[], Any]:
    """A piece of work at another point."""
    return make(replace(given, **changes), watch)


def loading(given: Given, watch: Watch) -> Callable[[], Any]:
    """One pass over JPEG files of 256 pixels, decoded by so many workers; the folder goes with the process."""
    folder = tempfile.TemporaryDirectory()
    for i, x in enumerate(ours.pictures(Given(16, FILES + 1))):
        path = Path(folder.name, "train" if i else "test", "0", f"{i}.jpg")
        path.parent.mkdir(parents=True, exist_ok=True)
        write_jpeg(torch.nn.functional.interpolate(x[None], 256)[0], str(path))
    data = ImageFolderDataModule(folder.name, size=224, batch_size=64, num_workers=given.workers, val_fraction=0.0)
    data.prepare_data()
    data.setup("fit")
    loader = data.train_dataloader()
    return lambda: (folder, sum(len(batch["x"]) for batch in loader))


def points() -> dict[tuple[str, str, float], tuple[Piece, int]]:
    """(axis, work, place on it) -> piece of work and its samples."""
    half: dict[str, Any] = {"precision": torch.bfloat16}
    simclr, mae, ts2vec = (partial(make, **half) for make in (ours.simclr, ours.mae, ours.ts2vec))
    out: dict[tuple[str, str, float], tuple[Piece, int]] = {}
    for batch in (8, 16, 32, 64, 128):
        out["batch", "SimCLR, ResNet-18", batch] = Piece(partial(at, make=simclr, size=32, batch=batch)), batch
    for size in (64, 96, 128, 192, 256):
        out["pixels", "MAE, ViT-Ti/16", size] = Piece(partial(at, make=mae, size=size, batch=8, network=scaling.NETWORKS[0])), 8
    for length in (128, 256, 512, 1024):
        out["time steps", "TS2Vec", length] = Piece(partial(at, make=ts2vec, size=length, batch=8)), 8
    for workers in (0, 1, 2):
        out["workers", "JPEG files", workers] = Piece(partial(at, make=loading, workers=workers)), FILES
    return out


def draw(rows: list[dict[str, Any]]) -> None:
    """One panel for each axis, and one for memory."""
    axes = list(dict.fromkeys(row["against"] for row in rows))
    panels = [(against, "ms_per_sample", "ms per sample") for against in axes] + [(axes[-1], "mb", "MB of one process")]
    figure, grid = plt.subplots(2, -(-len(panels) // 2), figsize=(11, 6))
    for axis, (against, key, label) in zip(grid.flat, panels, strict=False):
        here = [row for row in rows if row["against"] == against]
        for work in dict.fromkeys(row["work"] for row in here):
            axis.plot(*zip(*((row["value"], row[key]) for row in here if row["work"] == work), strict=True), "o-", label=work)
        axis.set(xlabel=against, ylabel=label, ylim=(0, None))
        axis.legend(fontsize=8, frameon=False)
    figure.tight_layout()
    figure.savefig(PICTURE, dpi=110)


def rows(rounds: int) -> list[dict[str, Any]]:
    """Measure all of it, the points of one line by turns, and draw ``docs/pictures/cost.png``."""
    out = []
    for (against, work), line in itertools.groupby(points().items(), key=lambda point: point[0][:2]):
        places = {place[2]: given for place, given in line}
        found = measure({str(value): piece for value, (piece, _) in places.items()}, Given(32, 8), rounds)
        for value, (_, count) in places.items():
            row = found[str(value)]
            out.append({"against": against, "work": work, "value": value, "ms_per_sample": round(row.ms / count, 3),
                        "mb": round(row.memory, 1)})
    out += scaling.memory()
    draw(out)
    return out
