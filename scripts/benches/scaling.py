"""Two processes, one core each, beside one: how much faster, and how much memory, with weights copied or spread."""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Callable
from typing import Any, Literal

import torch
import torch.distributed as dist
from rich.progress import track
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.multiprocessing import get_context, spawn
from torch.nn.parallel import DistributedDataParallel

from benches import ours
from benches.turns import Given, peak_mb
from ssl_suite.method import Method
from ssl_suite.nn.sharding import shard

Kind = Literal["one process", "two, apart", "two, DDP", "two, FSDP"]
STEPS = 3
NETWORKS = ("vit_tiny_patch16_224", "vit_small_patch16_224", "vit_base_patch16_224")


class Loss(nn.Module):
    """A method as the module that `DistributedDataParallel` wraps: its forward pass is the loss."""

    def __init__(self, method: Method) -> None:
        super().__init__()
        self.method = method

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        """The loss of a batch."""
        return self.method.step(batch).loss


def member(rank: int, kind: Kind, store: str, given: Given, answers: Any) -> None:
    """One process on a core of its own: a few steps of a masked autoencoder; the first answers (ms, MB, parameters)."""
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # cores are what is counted here
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[rank % len(cores)]})
    torch.set_num_threads(1)
    torch.manual_seed(0)
    world = 1 if kind == "one process" else 2
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world)
    before = peak_mb()
    method, batch = ours.masked_autoencoder(given), ours.batch_of(ours.pictures(given), given)
    parameters = sum(p.numel() for p in method.parameters())
    loss: Callable[[dict[str, Tensor]], Tensor] = Loss(method)
    if kind == "two, DDP":
        loss = DistributedDataParallel(Loss(method))
    elif kind == "two, FSDP":
        shard(method, init_device_mesh("cpu", (world,)), ("step",))
    optimizer, times = torch.optim.AdamW(method.parameters(), lr=1e-3), []
    for _ in range(1 + STEPS):
        dist.barrier()
        start = time.perf_counter()
        optimizer.zero_grad()
        loss(batch).backward()
        optimizer.step()
        times.append(1e3 * (time.perf_counter() - start))
    if rank == 0:
        answers.put((statistics.median(times[1:]), peak_mb() - before, parameters / 1e6))
    dist.destroy_process_group()


def run(kind: Kind, given: Given) -> tuple[float, float, float]:
    """Milliseconds of a step, most megabytes of one process, and the net's parameters in millions."""
    answers = get_context("spawn").SimpleQueue()
    with tempfile.TemporaryDirectory() as folder:
        spawn(member, (kind, f"{folder}/store", given, answers), nprocs=1 if kind == "one process" else 2)
    return answers.get()


def rows(rounds: int) -> list[dict[str, Any]]:
    """Turn by turn, ViT-S, 4 pictures of 224 pixels in each process: alone, two without and with exchange of gradients."""
    kinds: tuple[Kind, ...] = ("one process", "two, apart", "two, DDP")
    given = Given(224, 4, network="vit_small_patch16_224")
    turns: dict[Kind, list[float]] = {kind: [] for kind in kinds}
    for _ in track(range(rounds), transient=True):
        for kind in kinds:
            turns[kind].append(run(kind, given)[0])
    found = {kind: statistics.median(times) for kind, times in turns.items()}
    rate = {kind: given.batch * (1 if kind == "one process" else 2) * 1e3 / ms for kind, ms in found.items()}
    return [{"work": kind, "ms": round(found[kind], 1), "samples_per_second": round(rate[kind], 3),
             "ratio": round(rate[kind] / rate["one process"], 3)} for kind in kinds]


def memory() -> list[dict[str, Any]]:
    """Memory of one process against the size of the model, for copied and for spread weights.

    glibc is told to give freed tensors back to the system, as it would otherwise keep what FSDP gathers and lets go.
    """
    os.environ["MALLOC_MMAP_THRESHOLD_"] = str(2**18)
    kinds: tuple[Kind, ...] = ("one process", "two, DDP", "two, FSDP")
    out = []
    for network in track(NETWORKS, transient=True):
        for kind in kinds:
            ms, mb, parameters = run(kind, Given(64, 2, network=network))
            out.append({"against": "parameters, M", "work": f"MAE, {kind}", "value": round(parameters, 1),
                        "ms_per_sample": round(ms / 2, 2), "mb": round(mb, 1)})
    return out
