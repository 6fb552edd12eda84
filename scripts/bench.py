"""How fast: ours beside peers and beside what the machine can do, turn by turn, every piece of work in a process of its own.

    python scripts/bench.py simclr --peer solo-learn=FOLDER --peer stable-pretraining=FOLDER
    python scripts/bench.py mae --peer mae=FOLDER              # FOLDER: a checkout of facebookresearch/mae
    python scripts/bench.py fixmatch --peer fixmatch=FOLDER    # kekmodel/FixMatch-pytorch
    python scripts/bench.py tent --peer tent=FOLDER --network vit_small_patch16_224 --size 224 --batch 16
    python scripts/bench.py views | lorot | wav2vec2 | ts2vec | knn
    python scripts/bench.py cost | scaling                     # as the work grows; two processes beside one

views     kind ``crop`` of ``data=cifar10`` on a batch, over the same by others. One view of each picture.
simclr    a training step: views, forward, loss, gradient, optimizer. ResNet-18 with the stem for small pictures.
mae       the same of a masked autoencoder, decoder 512 wide and 8 deep.
fixmatch  the same of FixMatch, WRN-28-2; ``--batch`` counts labelled pictures, seven unlabelled ones go with each.
lorot     the same of supervised training with the turn of a patch as a second task, over supervised training alone.
wav2vec2  the same of wav2vec 2.0 at half the Base size.
ts2vec    the same of TS2Vec.
tent      predict and adapt, over forward pass, entropy and gradient with respect to the same parameters.
knn       accuracy of the weighted nearest neighbours among 50,000 features (``--batch``) of a fifth as many queries.
cost      time and memory of a sample as batch, pictures, series, workers and model grow; draws ``docs/pictures/cost.png``.
scaling   a step on two processes, a core each, over the same on one.

ratio     milliseconds over those of the first row.
views     share of the time in which views were made or waited for.
mfu       operations a second of matrix products and convolutions, over those of one large product in the same precision.

Peers that are not installed come from a checkout, ``--peer NAME=FOLDER``; adapters are in ``scripts/benches/peers.py``. Rows
with versions and commit are added to ``docs/benchmarks/NAME.csv``.
"""

from __future__ import annotations

import argparse
import csv
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from benches import cost, ours, peers, scaling
from benches.turns import Given, Piece, Row, matrix_product, measure
from rich.console import Console
from rich.table import Table

from ssl_suite.config import ConfigError
from ssl_suite.programs import guarded, parser
from ssl_suite.summary import commit

OUT = Path(__file__).resolve().parents[1] / "docs" / "benchmarks"
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
HALF = "fp16" if torch.cuda.is_available() else "fp32"


@dataclass(frozen=True)
class Bench:
    """What is compared, and what for by default.

    Attributes:
        size: pixels, or steps.
        batch: samples.
        pieces: work by name; ratios are over the first.
        network: timm's name, where one may be chosen.
    """

    size: int
    batch: int
    pieces: dict[str, Piece]
    network: str = "resnet18"


def step(make: Callable[..., Any]) -> dict[str, Piece]:
    """A training step of ours, as it is on a device that is good at bfloat16, and at the precision of most others."""
    return {"ours, bf16": Piece(partial(make, precision=torch.bfloat16), "bf16"), "ours, fp32": Piece(make)}


BENCHES = {
    "views": Bench(32, 256, {
        "ours, batched": Piece(ours.crops),
        "kornia, batched": Piece(peers.kornia_views, source="kornia"),
        "torchvision v2, per sample": Piece(peers.torchvision_views, source="torchvision"),
        "lightly, PIL per sample": Piece(peers.lightly_views, source="lightly")}),
    "simclr": Bench(32, 256, {
        **step(ours.simclr),
        "lightly": Piece(peers.lightly_simclr, source="lightly"),
        "solo-learn": Piece(peers.solo_simclr, HALF, "solo-learn"),
        "stable-pretraining": Piece(peers.stable_simclr, source="stable-pretraining")}),
    "mae": Bench(224, 16, {
        **step(ours.mae),
        "facebookresearch/mae": Piece(peers.facebook_mae, HALF, "mae")}, "vit_small_patch16_224"),
    "fixmatch": Bench(32, 16, {
        **step(ours.fixmatch),
        "kekmodel/FixMatch-pytorch": Piece(peers.kekmodel_fixmatch, source="fixmatch")}),
    "lorot": Bench(32, 64, {
        "supervised": Piece(ours.supervised),
        "LoRot-E": Piece(partial(ours.supervised, variant="explicit")),
        "LoRot-I": Piece(partial(ours.supervised, variant="implicit"))}),
    "wav2vec2": Bench(5 * ours.RATE, 4, {
        **step(ours.wav2vec2),
        "torchaudio, HuBERT": Piece(peers.torchaudio_hubert, source="torchaudio")}),
    "ts2vec": Bench(512, 16, {
        **step(ours.ts2vec),
        "TS2Vec's authors": Piece(peers.official_ts2vec, source="ts2vec")}),
    "tent": Bench(64, 64, {
        "forward + backward": Piece(ours.forward_backward),
        "ours": Piece(ours.tent),
        "ours, guarded": Piece(ours.tent_guarded),
        "DequanWang/tent": Piece(peers.official_tent, source="tent")}),
    "knn": Bench(0, 50_000, {
        "ours": Piece(ours.knn),
        "lightly": Piece(peers.lightly_knn, source="lightly"),
        "similarities alone": Piece(ours.knn_product)})}
CHECKOUTS = ("solo-learn", "stable-pretraining", "mae", "fixmatch", "tent", "ts2vec")


def source_of(piece: Piece, given: Given) -> str:
    """Where a piece of work comes from: package and version, or checkout and commit; empty where it is not there."""
    if piece.source == "ssl_suite":
        return f"ssl_suite {commit()}"
    if piece.source not in CHECKOUTS:
        return f"{piece.source} {version(piece.source)}" if find_spec(piece.source) else ""
    if piece.source not in given.peers:
        return ""
    command = ["git", "-C", given.peers[piece.source], "rev-parse", "--short=12", "HEAD"]
    return f"{piece.source} {subprocess.run(command, capture_output=True, text=True).stdout.strip() or 'unknown'}"


def write(name: str, rows: list[dict[str, Any]], **shared: Any) -> None:
    """Show rows and add them, with what they share, to the file of their benchmark."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"cpu, {torch.get_num_threads()} threads"
    shared |= {"device": device, "torch": torch.__version__, "commit": commit()}
    shown = [key for key in rows[0] if key not in ("source", "rounds") and any(row[key] is not None for row in rows)]
    table = Table(*shown, title=name)
    for row in rows:
        table.add_row(*("" if row[key] is None else str(row[key]) for key in shown))
    Console().print(table)
    path = OUT / f"{name}.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, [*rows[0], *shared])
        if fresh:
            writer.writeheader()
        writer.writerows({**row, **shared} for row in rows)


def compare(name: str, given: Given, rounds: int) -> None:
    """Run a benchmark, with the largest products the device is good for beside it."""
    sources = {work: source_of(piece, given) for work, piece in BENCHES[name].pieces.items()}
    pieces = {work: piece for work, piece in BENCHES[name].pieces.items() if sources[work]}
    for precision in sorted({piece.precision for piece in pieces.values()}):
        pieces[f"large product, {precision}"] = Piece(partial(matrix_product, dtype=DTYPES[precision]), precision)
    found = measure(pieces, given, rounds)
    first = next(iter(found.values())).ms
    peak = {precision: rate(found[f"large product, {precision}"]) for precision in {p.precision for p in pieces.values()}}
    rows = [{
        "work": work, "ms": round(row.ms, 2), "ratio": round(row.ms / first, 3), "views": round(row.views, 4),
        "mb": round(row.memory, 1), "gflop": round(row.gflop, 2), "mfu": round(rate(row) / peak[pieces[work].precision], 3),
        "result": row.result, "source": sources.get(work, "")} for work, row in found.items()]
    write(name, rows, size=given.size, batch=given.batch, network=given.network, workers=given.workers, rounds=rounds)


def rate(row: Row) -> float:
    """Operations a millisecond, in 1e9."""
    return row.gflop / row.ms


def checkout(text: str) -> tuple[str, str]:
    """NAME=FOLDER of a peer."""
    name, _, folder = text.partition("=")
    if name not in CHECKOUTS:
        raise argparse.ArgumentTypeError(f"there is no adapter for the peer {name!r}; there are {', '.join(CHECKOUTS)}")
    if not Path(folder).is_dir():
        raise argparse.ArgumentTypeError(f"{folder!r} is no folder; give the checkout: --peer {name}=FOLDER")
    return name, str(Path(folder).resolve())


def main() -> None:
    """Entry point."""
    arguments = parser(__doc__ or "")
    arguments.add_argument("what", choices=[*BENCHES, "cost", "scaling"])
    arguments.add_argument("--peer", type=checkout, action="append", default=[], metavar="NAME=FOLDER", help="a peer's checkout")
    arguments.add_argument("--network", help="timm name, for tent and mae")
    arguments.add_argument("--size", type=int, help="pixels, or steps")
    arguments.add_argument("--batch", type=int, help="samples")
    arguments.add_argument("--workers", type=int, default=2, help="processes in which peers augment (default: 2)")
    arguments.add_argument("--rounds", type=int, default=7, help="turns of each (default: 7)")
    args = arguments.parse_args()
    if args.what in BENCHES:
        bench = BENCHES[args.what]
        size, batch, network = args.size or bench.size, args.batch or bench.batch, args.network or bench.network
        compare(args.what, Given(size, batch, args.workers, network, dict(args.peer)), args.rounds)
    elif args.peer:
        raise ConfigError(f"{args.what} compares with nobody; leave --peer out")
    else:
        write(args.what, {"cost": cost.rows, "scaling": scaling.rows}[args.what](args.rounds), rounds=args.rounds)


if __name__ == "__main__":
    guarded(main)
