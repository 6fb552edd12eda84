"""Let a guarded stream run for a long time on a tiny network, and see that nothing grows and the source stays as it is.

    python scripts/soak.py                              # 100,000 batches
    python scripts/soak.py --batches 2000 --out ""      # a quick look, no row

One batch in fifty is bad: NaN, black, empty or too small; the shift changes every thousand batches; a reader predicts in
between, and the state goes to a file every ten thousand. Memory is the resident set of the process, read from /proc.
"""

from __future__ import annotations

import csv
import os
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
from rich.console import Console
from torch import Tensor, nn

from ssl_suite.methods.adaptation.tent import Tent
from ssl_suite.nn.snapshot import fingerprint
from ssl_suite.programs import guarded, parser
from ssl_suite.serving.budget import Budget
from ssl_suite.serving.deployment import Deployment
from ssl_suite.summary import commit

CHANNELS, CLASSES, BATCH = 8, 4, 32
RECORDS = 20
"""Looks at memory and at the source's weights, evenly spread."""


@dataclass
class Soak:
    """What was seen.

    Attributes:
        batches: sent so far, at every look.
        mib: resident memory then.
        counts: of the stream; see `Stream`.
        drifted: looks at which the source model's weights were not those of the beginning.
        bad_answers: batches without a finite answer though the samples were finite.
        seconds: in all.
    """

    batches: list[int] = field(default_factory=list)
    mib: list[float] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    drifted: int = 0
    bad_answers: int = 0
    seconds: float = 0.0

    def growth(self) -> float:
        """MiB from the first fifth of the looks, when all is allocated, to the end."""
        return self.mib[-1] - self.mib[len(self.mib) // 5]


def tiny(seed: int) -> tuple[nn.Module, Tensor]:
    """A classifier of points by the nearest of four centres, with batch norm, and the centres (4, 8)."""
    generator = torch.Generator().manual_seed(seed)
    centres = 3.0 * torch.randn(CLASSES, CHANNELS, generator=generator)
    norm, head = nn.BatchNorm1d(CHANNELS), nn.Linear(CHANNELS, CLASSES)
    mean, std = centres.mean(0), (centres.var(0, correction=0) + 1.0).sqrt()
    with torch.no_grad():
        norm.get_buffer("running_mean").copy_(mean)
        norm.get_buffer("running_var").copy_(std**2)
        head.weight.copy_(centres * std)  # the centres' own likelihoods, behind the norm
        head.bias.copy_((centres * (mean - centres / 2.0)).sum(1))
    return nn.Sequential(norm, head).eval(), centres


def batch(i: int, centres: Tensor) -> Tensor:
    """The i-th batch (B, 8): points around the centres, shifted, now and then bad."""
    generator = torch.Generator().manual_seed(i)
    x = centres[torch.randint(CLASSES, (BATCH,), generator=generator)] + torch.randn(BATCH, CHANNELS, generator=generator)
    shift = torch.randn(2, CHANNELS, generator=torch.Generator().manual_seed(i // 1000))
    x = x * (0.2 * shift[0]).exp() + shift[1]
    if i % 50 == 49:
        kind = i // 50 % 4
        x = (x.index_fill(0, torch.tensor([0]), float("nan")), torch.zeros_like(x), x[:0], x[:3])[kind]
    return x


def resident() -> float:
    """Resident memory of this process, MiB."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def soak(count: int, folder: Path, seed: int = 0) -> Soak:
    """Send so many batches to a guarded stream."""
    model, centres = tiny(seed)
    made = Deployment(model, Tent, budget=partial(Budget, max_mib=64.0), shape=(CHANNELS,), folder=folder)
    stream, home, found, start = made.stream(), fingerprint(model.state_dict()), Soak(), time.perf_counter()
    for i in range(count):
        x = batch(i, centres)
        logits, _ = stream.predict_and_adapt(x)
        answers = [logits, stream.predict(x)] if x.isfinite().all() else []
        found.bad_answers += not all(a.isfinite().all() for a in answers)
        if (i + 1) % max(1, count // 10) == 0:
            made.save()
        if (i + 1) % max(1, count // RECORDS) == 0:
            found.batches.append(i + 1)
            found.mib.append(resident())
            found.drifted += fingerprint(made.source.state_dict()) != home or fingerprint(model.state_dict()) != home
    found.counts, found.seconds = stream.counts.copy(), time.perf_counter() - start
    stream.reset()
    found.bad_answers += not torch.equal(stream.predict(batch(0, centres)), made.stream("fresh").predict(batch(0, centres)))
    return found


def main() -> None:
    """Entry point."""
    arguments = parser(__doc__ or "")
    arguments.add_argument("--batches", type=int, default=100_000)
    arguments.add_argument("--seed", type=int, default=0)
    arguments.add_argument("--out", default="docs/tables/soak.csv", help="table of the figures; empty for none")
    given = arguments.parse_args()
    torch.set_num_threads(1)
    begun = commit()
    with tempfile.TemporaryDirectory() as folder:
        found = soak(given.batches, Path(folder), given.seed)
    per = ", ".join(f"{n}: {m:.1f}" for n, m in zip(found.batches[:: RECORDS // 5], found.mib[:: RECORDS // 5], strict=True))
    Console(soft_wrap=True).print(
        f"{given.batches} batches of {BATCH} in {found.seconds:.0f} s; MiB resident at {per}, at the end {found.mib[-1]:.1f} "
        f"(grew by {found.growth():.1f} since a fifth of the way); source model changed at {found.drifted} of {RECORDS} looks; "
        f"answers not finite or reset not exact: {found.bad_answers}; {dict(found.counts)}")
    if given.out:
        figures = {"growth_mib": found.growth(), "source_changed": found.drifted, "bad_answers": found.bad_answers,
                   **{f"mib_at_{n}": m for n, m in zip(found.batches, found.mib, strict=True)}, **found.counts}
        with Path(given.out).open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["row", "metric", "value", "seed", "commit", "seconds", "torch", "command"])
            shared = [given.seed, begun, round(found.seconds, 1), torch.__version__,
                      f"python scripts/soak.py --batches {given.batches} --seed {given.seed}"]
            writer.writerows(["tent_guarded", name, round(value, 3), *shared] for name, value in figures.items())


if __name__ == "__main__":
    guarded(main)
