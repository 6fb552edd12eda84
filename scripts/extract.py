"""Write the features of a data set, by the encoder of a run, to an array file.

    python scripts/extract.py RUN --data digits --out features.npz
    python scripts/extract.py RUN --data image_folder --set data.path=PICTURES --part test --out features.npz

The file holds ``features`` (N, D) float32, ``index`` (N,), and ``y`` (N,) where the data have classes.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from rich.console import Console

from ssl_suite.evaluation import classes, features
from ssl_suite.io.checkpoints import whole_file
from ssl_suite.programs import data_for, guarded, parser
from ssl_suite.run import load_exported


def main() -> None:
    """Entry point."""
    arguments = parser(__doc__ or "")
    arguments.add_argument("run", type=Path, help="run folder or backbone.safetensors")
    arguments.add_argument("--data", required=True, help="a data config, as after data=")
    arguments.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="overrides, as on train.py's command line")
    arguments.add_argument("--part", choices=("train", "val", "test"), default="test", help="part of the data (default: test)")
    arguments.add_argument("--out", type=Path, required=True, help="the .npz file to write")
    arguments.add_argument("--device", default="cpu", help="where to compute (default: cpu)")
    given = arguments.parse_args()
    backbone, spec = load_exported(given.run)
    data = data_for(given.data, given.set, spec)
    device = torch.device(given.device)
    backbone.to(device)
    views = data.views.standardise(spec).to(device)

    def embed(batch: dict) -> torch.Tensor:
        return backbone(views(batch, "clean")[0], batch.get("length"))

    found = {"features": features(embed, data, given.part, device=device, title="extracting"), "index": data.parts[given.part][1]}
    if data.parts[given.part][0].targets is not None:
        found["y"] = classes(data, given.part)
    with whole_file(given.out) as file:
        np.savez(file, **found)
    Console(soft_wrap=True).print(f"{given.out}: {found['features'].shape[0]} features of width {found['features'].shape[1]}")


if __name__ == "__main__":
    guarded(main)
