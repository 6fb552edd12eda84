"""How fast: ours beside others and beside the bare work, turn by turn in one process, as a ratio of medians.

    python scripts/bench.py views                              # SimCLR's crops of 256 small pictures
    python scripts/bench.py step                               # SimCLR, ResNet-18, batch 256
    python scripts/bench.py knn                                # 10,000 queries among 50,000 features
    python scripts/bench.py adapt --network vit_small_patch16_224 --size 224 --batch 16 --pairs 9

views  kind ``crop`` of ``data=cifar10`` on a batch, over the same operations of torchvision v2 sample by sample and of
       lightly's ``SimCLRTransform`` (PIL) with the same strengths. One view of each picture.
step   one training step of SimCLR, ResNet-18, two views and all: ours over lightly's parts put together as its own example does
       (views sample by sample in this process, two forward passes, AdamW).
knn    accuracy of the weighted nearest neighbours over lightly's ``knn_predict`` in batches of 256, and the bare matrix product.
adapt  `Adapter.predict_and_adapt` of TENT, and of the same adapter in a guarded stream, over what no adaptation can do
       without: one forward pass, the entropy, and its gradient with respect to the same parameters.

The first work of each benchmark is what the ratios are over. Rows with versions, threads and commit are added to
``docs/benchmarks/NAME.csv``.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import statistics
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import hydra
import numpy as np
import timm
import torch
from lightly.loss import NTXentLoss
from lightly.models.modules import SimCLRProjectionHead
from lightly.transforms import SimCLRTransform
from lightly.utils.benchmarking import knn_predict
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from torch import Tensor, nn
from torchvision.transforms import v2
from torchvision.transforms.functional import to_pil_image

from ssl_suite.backbones.images import ResNet
from ssl_suite.batch import Spec
from ssl_suite.functional.adaptation import entropy
from ssl_suite.functional.probes import knn_accuracy
from ssl_suite.methods.adaptation.tent import Tent
from ssl_suite.methods.pretraining.simclr import SimCLR
from ssl_suite.nn.norm import select_parameters, set_statistics
from ssl_suite.programs import guarded, parser
from ssl_suite.run import plain
from ssl_suite.serving.guard import CollapseGuard
from ssl_suite.serving.stream import Stream
from ssl_suite.summary import commit
from ssl_suite.views import Views

OUT = Path(__file__).resolve().parents[1] / "docs" / "benchmarks"
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
Works = dict[str, Callable[[], Any]]


def median_ms(works: Works, pairs: int) -> dict[str, float]:
    """Milliseconds of each piece of work, the median over rounds in which all take turns; one round warms up."""
    times: dict[str, list[float]] = {name: [] for name in works}
    with Progress(transient=True) as progress:
        for _ in progress.track(range(pairs + 1)):
            for name, work in works.items():
                start = time.perf_counter()
                work()
                if DEVICE.type == "cuda":
                    torch.cuda.synchronize()
                times[name].append(1e3 * (time.perf_counter() - start))
    return {name: statistics.median(values[1:]) for name, values in times.items()}


def pictures(given: argparse.Namespace) -> tuple[dict[str, Tensor], Spec, Views]:
    """Random uint8 pictures as a batch, their description, and the views of ``data=cifar10``."""
    with hydra.initialize_config_module("configs", version_base="1.3"):
        views = plain(hydra.compose("train", ["data=cifar10", "data.path=none"]).data)["views"]
    spec = Spec("images", (3, given.size, given.size), mean=(0.5,) * 3, std=(0.25,) * 3)
    x = torch.randint(0, 256, (given.batch, *spec.shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    made = Views(hydra.utils.instantiate(views, _convert_="all")).standardise(spec).to(DEVICE)
    return {"x": x.to(DEVICE), "index": torch.arange(given.batch, device=DEVICE)}, spec, made


def sample_by_sample(given: argparse.Namespace, x: Tensor) -> Works:
    """The same crop by torchvision v2 on tensors and by lightly on PIL pictures; each returns a batch."""
    size, samples = given.size, list(x.cpu())
    per_sample = v2.Compose([
        v2.RandomResizedCrop(size, (0.2, 1.0), antialias=True), v2.RandomHorizontalFlip(),
        v2.RandomApply([v2.ColorJitter(0.4, 0.4, 0.2, 0.1)], 0.8), v2.RandomGrayscale(0.2),
        v2.ToDtype(torch.float32, scale=True), v2.Normalize((0.5,) * 3, (0.25,) * 3)])
    pil = [to_pil_image(sample) for sample in samples]
    transform = SimCLRTransform(size, cj_strength=0.5, cj_sat=0.4, min_scale=0.2, gaussian_blur=0.0).transforms[0]
    return {"torchvision v2, per sample": lambda: torch.stack([per_sample(s) for s in samples]).to(DEVICE),
            "lightly, PIL per sample": lambda: torch.stack([transform(p) for p in pil]).to(DEVICE)}


def views_works(given: argparse.Namespace) -> Works:
    """One view of each picture."""
    batch, _, views = pictures(given)
    return {**sample_by_sample(given, batch["x"]), "ours, batched": lambda: views(batch, "crop")}


def step_works(given: argparse.Namespace) -> Works:
    """One step of SimCLR: two views, network, loss, gradient, optimizer."""
    batch, spec, views = pictures(given)
    transform = sample_by_sample(given, batch["x"])["lightly, PIL per sample"]
    peer = ResNet(spec, name="resnet18").to(DEVICE, memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    head, criterion = SimCLRProjectionHead(512, 512, 128).to(DEVICE), NTXentLoss(0.5)
    method = SimCLR(ResNet(spec, name="resnet18"), views, hidden_dim=512, projection_dim=128).to(DEVICE)
    theirs = torch.optim.AdamW([*peer.parameters(), *head.parameters()], lr=1e-3)
    ours = torch.optim.AdamW(method.parameters(), lr=1e-3, fused=True)

    def descend(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    def lightly_step() -> None:
        first, second = transform(), transform()
        descend(theirs, criterion(head(peer(first)), head(peer(second))))

    def our_step(precision: torch.dtype | None = None) -> None:
        with torch.autocast(DEVICE.type, precision) if precision else contextlib.nullcontext():
            loss = method.step(batch).loss
        descend(ours, loss)

    return {"lightly's parts, fp32": lightly_step, "ours, fp32": our_step, "ours, bf16": lambda: our_step(torch.bfloat16)}


def knn_works(given: argparse.Namespace) -> Works:
    """Nearest-neighbour accuracy of 10,000 queries among 50,000 features of width 512, k = 20, T = 0.07."""
    rng = np.random.default_rng(0)
    train, test = (rng.standard_normal((n, 512), dtype=np.float32) for n in (50_000, 10_000))
    y, test_y = (rng.integers(0, 10, n) for n in (50_000, 10_000))
    bank, queries = (nn.functional.normalize(torch.from_numpy(f), dim=1) for f in (train, test))
    labels, found = torch.from_numpy(y), {}

    def theirs() -> None:
        found["lightly"] = torch.cat([knn_predict(part, bank.T, labels, 10, 20, 0.07)[:, 0] for part in queries.split(256)])

    def ours() -> None:
        found["ours"] = torch.tensor(knn_accuracy(train, y, test, test_y, 20, 0.07))
        if "lightly" in found and abs(float((found["lightly"].numpy() == test_y).mean()) - float(found["ours"])) > 5e-4:
            raise RuntimeError("ours and lightly's accuracy differ, so their times say nothing")

    return {"lightly": theirs, "ours": ours, "matrix product alone": lambda: [part @ bank.T for part in queries.split(4096)]}


def adapt_works(given: argparse.Namespace) -> Works:
    """The bare forward and backward pass, the adapter, and the guarded stream, all on the same pictures."""
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"img_size": given.size} if given.network.startswith("vit") else {}
    model = timm.create_model(given.network, num_classes=10, **sizes).eval().to(DEVICE)
    bare = timm.create_model(given.network, num_classes=10, **sizes).eval().to(DEVICE).requires_grad_(False)
    x = torch.randn(given.batch, 3, given.size, given.size, device=DEVICE)
    parameters = select_parameters(bare)
    for p in parameters:
        p.requires_grad_()
    set_statistics(bare, "batch")
    adapter = Tent(model)
    stream = Stream(Tent(model), model.requires_grad_(False), guard=CollapseGuard())

    def forward_backward() -> tuple[Tensor, ...]:
        return torch.autograd.grad(entropy(bare(x)).mean(), parameters)

    return {"forward + backward": forward_backward, "TENT": lambda: adapter.predict_and_adapt(x),
            "TENT, guarded": lambda: stream.predict_and_adapt(x)}


BENCHES: dict[str, tuple[Callable[[argparse.Namespace], Works], int, int]] = {
    "views": (views_works, 32, 256), "step": (step_works, 32, 256), "knn": (knn_works, 0, 0), "adapt": (adapt_works, 64, 64)}
"""Name -> works, side of the pictures, pictures in a batch."""


def main() -> None:
    """Entry point."""
    arguments = parser(__doc__ or "")
    arguments.add_argument("what", choices=list(BENCHES))
    arguments.add_argument("--network", default="resnet18", help="timm name, for adapt")
    arguments.add_argument("--size", type=int, help="pixels (default: 32; adapt: 64)")
    arguments.add_argument("--batch", type=int, help="pictures (default: 256; adapt: 64)")
    arguments.add_argument("--pairs", type=int, default=7, help="rounds (default: 7)")
    given = arguments.parse_args()
    works, size, batch = BENCHES[given.what]
    given.size, given.batch = given.size or size, given.batch or batch
    times = median_ms(works(given), given.pairs)
    first = next(iter(times.values()))
    shared = {"network": given.network if given.what == "adapt" else "", "size": given.size, "batch": given.batch}
    device = torch.cuda.get_device_name() if DEVICE.type == "cuda" else f"cpu, {torch.get_num_threads()} threads"
    rows = [{**shared, "work": work, "ms": round(ms, 2), "ratio": round(ms / first, 3), "pairs": given.pairs, "device": device,
             "torch": torch.__version__, "lightly": version("lightly"), "commit": commit()} for work, ms in times.items()]
    table = Table("work", "ms", "ratio", title=given.what)
    for row in rows:
        table.add_row(str(row["work"]), f"{row['ms']:.1f}", f"{row['ratio']:.2f}")
    Console().print(table)
    path = OUT / f"{given.what}.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        if fresh:
            writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    guarded(main)
