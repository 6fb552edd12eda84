"""How fast: ours beside the bare work, turn by turn in one process, as a ratio of medians.

    python scripts/bench.py adapt                              # adapt + predict over forward + backward, a ResNet and a ViT
    python scripts/bench.py adapt --network vit_small_patch16_224 --size 224 --batch 16 --pairs 9

adapt  `Adapter.predict_and_adapt` of TENT, and of the same adapter in a guarded stream, over what no adaptation can do
       without: one forward pass, the entropy, and its gradient with respect to the same parameters.

Rows with versions, threads and commit are added to ``docs/benchmarks/adapt.csv``.
"""

from __future__ import annotations

import argparse
import csv
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import timm
import torch
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from torch import Tensor

from ssl_suite.functional.adaptation import entropy
from ssl_suite.methods.adaptation.tent import Tent
from ssl_suite.nn.norm import select_parameters, set_statistics
from ssl_suite.programs import guarded, parser
from ssl_suite.serving.guard import CollapseGuard
from ssl_suite.serving.stream import Stream
from ssl_suite.summary import commit

OUT = Path(__file__).resolve().parents[1] / "docs" / "benchmarks"


def median_ms(works: dict[str, Callable[[], Any]], pairs: int) -> dict[str, float]:
    """Milliseconds of each piece of work, the median over rounds in which all take turns; one round warms up."""
    times: dict[str, list[float]] = {name: [] for name in works}
    with Progress(transient=True) as progress:
        for _ in progress.track(range(pairs + 1)):
            for name, work in works.items():
                start = time.perf_counter()
                work()
                if torch.cuda.is_available():
                    torch.cuda.synchronize()
                times[name].append(1e3 * (time.perf_counter() - start))
    return {name: statistics.median(values[1:]) for name, values in times.items()}


def adapt_works(name: str, size: int, batch: int, device: torch.device) -> dict[str, Callable[[], Any]]:
    """The bare forward and backward pass, the adapter, and the guarded stream, all on the same pictures."""
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"img_size": size} if name.startswith("vit") else {}
    model = timm.create_model(name, num_classes=10, **sizes).eval().to(device)
    x = torch.randn(batch, 3, size, size, device=device)
    parameters = select_parameters(bare := timm.create_model(name, num_classes=10, **sizes).eval().to(device).requires_grad_(False))
    for p in parameters:
        p.requires_grad_()
    set_statistics(bare, "batch")
    adapter = Tent(model)
    stream = Stream(Tent(model), model.requires_grad_(False), guard=CollapseGuard())

    def forward_backward() -> tuple[Tensor, ...]:
        return torch.autograd.grad(entropy(bare(x)).mean(), parameters)

    return {"forward + backward": forward_backward, "TENT": lambda: adapter.predict_and_adapt(x),
            "TENT, guarded": lambda: stream.predict_and_adapt(x)}


def bench_adapt(given: argparse.Namespace) -> list[dict[str, Any]]:
    """Rows of the benchmark of adaptation."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    rows = []
    for name in given.network:
        times = median_ms(adapt_works(name, given.size, given.batch, device), given.pairs)
        bare = times["forward + backward"]
        rows += [{"network": name, "size": given.size, "batch": given.batch, "work": work, "ms": round(ms, 2),
                  "ratio": round(ms / bare, 3)} for work, ms in times.items()]
    device_name = torch.cuda.get_device_name() if device.type == "cuda" else f"cpu, {torch.get_num_threads()} threads"
    return [{**row, "pairs": given.pairs, "device": device_name, "torch": torch.__version__, "commit": commit()} for row in rows]


def main() -> None:
    """Entry point."""
    arguments = parser(__doc__ or "")
    arguments.add_argument("what", choices=["adapt"])
    arguments.add_argument("--network", nargs="*", default=["resnet18", "vit_tiny_patch16_224"], help="timm names")
    arguments.add_argument("--size", type=int, default=64, help="pixels (default: 64)")
    arguments.add_argument("--batch", type=int, default=64)
    arguments.add_argument("--pairs", type=int, default=7, help="rounds (default: 7)")
    rows = bench_adapt(arguments.parse_args())
    table = Table("network", "work", "ms", "ratio")
    for row in rows:
        table.add_row(row["network"], row["work"], f"{row['ms']:.1f}", f"{row['ratio']:.2f}")
    Console().print(table)
    path = OUT / "adapt.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        if fresh:
            writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    guarded(main)
