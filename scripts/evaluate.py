"""Judge a run again, on its own data or on others.

    python scripts/evaluate.py RUN                              # probes of the encoder beside two references
    python scripts/evaluate.py RUN --protocol test              # the method's own test scores: accuracy, or CTC error rates
    python scripts/evaluate.py RUN --protocol views             # LiDAR, alignment, uniformity of the encoder
    python scripts/evaluate.py RUN --protocol map --by tsne     # RUN/pictures/map_tsne.png: test features, coloured by class
    python scripts/evaluate.py RUN --protocol finetune --set data.labels_per_class=10
    python scripts/evaluate.py RUN --data series --set data.name=GunPoint --out scores.json

Protocols: ``probe`` (kNN, 1-shot, 3-shot, all labels, RankMe, alpha-ReQ; frozen features), ``views`` (LiDAR, alignment and
uniformity over 10 ``crop`` views of up to 1000 test samples; no labels), ``map`` (up to 2000 test samples on a plane, by PCA, t-SNE
or, with the extra ``maps``, UMAP), ``linear`` (a linear layer trained on views of the data, frozen backbone), ``finetune``
(everything trained), ``test`` (no training: the run's own predictions).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, get_args

import lightning as L
from rich.console import Console
from rich.table import Table
from torch import nn

from ssl_suite.callbacks.pictures import scatter
from ssl_suite.evaluation import Embed, classes, features, judge, raw_features, view_scores
from ssl_suite.functional.maps import Projection, flattened
from ssl_suite.io.weights import read_description
from ssl_suite.programs import data_for, guarded, parser, started_run
from ssl_suite.run import build_backbone, load_exported, load_run
from ssl_suite.summary import read_summary


def embedding(net: nn.Module, data: Any, kind: str = "clean") -> Embed:
    """Representations of samples under one kind of view by a backbone."""
    return lambda batch: net(data.views(batch, kind)[0], batch.get("length"))


def backbones(run: Path, data: Any, seed: int) -> dict[str, nn.Module]:
    """The encoder of a run, and the same backbone untrained."""
    backbone, spec = load_exported(run)
    data.views.standardise(spec)
    L.seed_everything(seed, verbose=False)
    return {"this run": backbone, "untrained": build_backbone(read_description(run / "backbone.safetensors")[1], spec).eval()}


def probes(run: Path, data: Any, seed: int) -> dict[str, dict[str, float]]:
    """Probe scores of the encoder, of the same backbone untrained, and of the raw data."""
    found = {name: judge(embedding(net, data), data, seed, 10_000, title=f"probing: {name}")
             for name, net in backbones(run, data, seed).items()}
    found["raw"] = judge(raw_features(data.spec), data, seed, 10_000, title="probing: raw")
    return found


def among_views(run: Path, data: Any, seed: int) -> dict[str, dict[str, float]]:
    """Scores over grouped views of the encoder, and of the same backbone untrained."""
    return {name: view_scores(embedding(net, data, "crop"), data) for name, net in backbones(run, data, seed).items()}


def write_map(run: Path, data: Any, by: Projection, seed: int, out: Path | None) -> Path:
    """A picture of the test features on a plane; returns its path."""
    path = out or run / "pictures" / f"map_{by}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    backbone, spec = load_exported(run)
    data.views.standardise(spec)
    points = features(embedding(backbone, data), data, "test", 2000, title="encoding")
    y = None if data.parts["test"][0].targets is None else classes(data, "test", 2000)
    scatter(path, flattened(points, by, seed), y, f"{len(points)} test features by {by}")
    return path


def own_scores(run: Path, data: Any) -> dict[str, dict[str, float]]:
    """The run's own predictions on the test part."""
    loaded = load_run(run)
    data.views.standardise(loaded.spec)
    loaded.method.views = data.views
    trainer = L.Trainer(accelerator="auto", devices=1, logger=False, enable_checkpointing=False, enable_model_summary=False)
    results = trainer.test(loaded.method, dataloaders=data.test_dataloader(), verbose=False)[0]
    return {"this run": {name.removeprefix("test/"): float(value) for name, value in results.items()}}


def main() -> None:
    """Entry point."""
    arguments = parser(__doc__ or "")
    arguments.add_argument("run", type=Path, help="run folder")
    arguments.add_argument("--protocol", choices=("probe", "views", "map", "linear", "finetune", "test"), default="probe")
    arguments.add_argument("--by", choices=get_args(Projection), default="pca", help="how a map is made (default: pca)")
    arguments.add_argument("--data", help="a data config, as after data= (default: the run's own data)")
    arguments.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="overrides, as on train.py's command line")
    arguments.add_argument("--seed", type=int, default=0)
    arguments.add_argument("--out", type=Path, help="write the scores as JSON; for a map, the picture")
    given = arguments.parse_args()
    if given.protocol in ("linear", "finetune"):
        model = {"linear": "linear_probe", "finetune": "finetune"}[given.protocol]
        data = given.data or read_summary(given.run)["data"]
        started_run([f"model={model}", f"data={data}", f"init_from={given.run}", f"seed={given.seed}", *given.set])
        return
    data = data_for(given.data, given.set, load_exported(given.run)[1], given.run)
    if given.protocol == "map":
        Console(soft_wrap=True).print(str(write_map(given.run, data, given.by, given.seed, given.out)))
        return
    if given.protocol == "test":
        found = own_scores(given.run, data)
    else:
        found = {"probe": probes, "views": among_views}[given.protocol](given.run, data, given.seed)
    table = Table("", *found)
    for row in found["this run"]:
        table.add_row(row, *(f"{scores[row]:.4f}" for scores in found.values()))
    Console().print(table)
    if given.out:
        given.out.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    guarded(main)
