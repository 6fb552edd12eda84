"""Pieces of work, each in a process of its own, that take turns: nobody's memory, threads or patches reach another's."""

from __future__ import annotations

import contextlib
import random
import re
import statistics
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.progress import Progress
from torch.multiprocessing import get_context
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from ssl_suite.config import ConfigError

TURN = 0.5
"""Seconds: what is done sooner is repeated until a turn takes about as long."""


@dataclass(frozen=True)
class Given:
    """What a piece of work is to be built for.

    Attributes:
        size: side of the pictures in pixels, or steps of a series or waveform.
        batch: samples in a batch.
        workers: processes that augment for peers who augment sample by sample.
        network: name of a timm network, where one may be chosen.
        peers: name of a peer -> its checkout.
    """

    size: int
    batch: int
    workers: int = 2
    network: str = "resnet18"
    peers: Mapping[str, str] = field(default_factory=dict)

    @property
    def device(self) -> torch.device:
        """The accelerator if there is one."""
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")


class Watch:
    """Adds up the time spent inside of ``with watch:``, in seconds."""

    seconds = 0.0

    def __enter__(self) -> None:
        self.start = now()

    def __exit__(self, *error: object) -> None:
        self.seconds += now() - self.start


Maker = Callable[[Given, Watch], Callable[[], Any]]
"""Builds a piece of work; the watch runs while it makes views or waits for them."""


@dataclass(frozen=True)
class Piece:
    """A piece of work.

    Attributes:
        make: builds it, in its own process.
        precision: of its matrix products.
        source: package it comes from, or name of a peer.
    """

    make: Maker
    precision: str = "fp32"
    source: str = "ssl_suite"


@dataclass(frozen=True)
class Row:
    """What was measured: medians over the rounds.

    Attributes:
        ms: milliseconds.
        views: share of them spent on views.
        memory: most megabytes held since the work was begun, what its process held before left out.
        gflop: floating-point operations of matrix products and convolutions, in 1e9.
        result: what the work came to, where that is a number.
    """

    ms: float
    views: float
    memory: float
    gflop: float
    result: float | None


def now() -> float:
    """Seconds on a clock, once the device has done all it was told."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def peak_mb() -> float:
    """The most megabytes that this process ever held, those of the GPU where there is one."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    return float(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1]) / 1024  # type: ignore[index]


def counter() -> FlopCounterMode:
    """Counts operations, those of the CPU's fused attention too, which PyTorch leaves out."""
    aten: Any = torch.ops.aten
    return FlopCounterMode(display=False, custom_mapping={
        aten._scaled_dot_product_flash_attention_for_cpu: lambda q, k, v, *_, **__: sdpa_flop_count(q, k, v),
        aten._scaled_dot_product_flash_attention_for_cpu_backward:
            lambda grad, q, k, v, *_, **__: sdpa_backward_flop_count(grad, q, k, v)})


def serve(pipe: Any, make: Maker, given: Given) -> None:
    """The process of a piece of work: builds it, does it once under the counter, then again whenever it is its turn."""
    warnings.simplefilter("ignore")
    for seed in (random.seed, np.random.seed, torch.manual_seed):
        seed(0)
    watch, before = Watch(), peak_mb()
    work = make(given, watch)
    start = now()
    with counter() as flops:
        result = work()
    if now() - start < TURN:
        start = now()
        work()
    repeats = max(1, int(TURN / (now() - start)))
    pipe.send((flops.get_total_flops() / 1e9, result if isinstance(result, float) else None))
    while pipe.recv():
        watch.seconds, start = 0.0, now()
        for _ in range(repeats):
            work()
        seconds = now() - start
        pipe.send((1e3 * seconds / repeats, watch.seconds / seconds, peak_mb() - before))


def measure(pieces: Mapping[str, Piece], given: Given, rounds: int) -> dict[str, Row]:
    """Let all pieces take turns, one at a time, the others waiting idly.

    Raises:
        ConfigError: a piece of work failed; its own process has printed why.
    """
    context, pipes, processes = get_context("spawn"), {}, []
    turns: dict[str, list[tuple[float, float, float]]] = {name: [] for name in pieces}
    counts = {}
    try:
        with Progress(transient=True) as progress:
            for name, piece in pieces.items():
                pipes[name], end = context.Pipe()
                processes.append(context.Process(target=serve, args=(end, piece.make, given)))
                processes[-1].start()
                end.close()
                counts[name] = pipes[name].recv()
            for _ in progress.track(range(rounds)):
                for name, pipe in pipes.items():
                    pipe.send(True)
                    turns[name].append(pipe.recv())
    except (EOFError, BrokenPipeError) as error:
        raise ConfigError(f"{name}: the work failed; what it said stands above") from error
    finally:
        for pipe in pipes.values():
            with contextlib.suppress(BrokenPipeError):
                pipe.send(False)
        for process in processes:
            process.join()
    medians = {name: [statistics.median(column) for column in zip(*values, strict=True)] for name, values in turns.items()}
    return {name: Row(*values, *counts[name]) for name, values in medians.items()}


def matrix_product(given: Given, watch: Watch, dtype: torch.dtype) -> Callable[[], Any]:
    """Products of two large square matrices: what the device can do at best in this precision."""
    side = 8192 if given.device.type == "cuda" else 2048
    a = torch.randn(side, side, device=given.device, dtype=dtype)
    return lambda: [a @ a for _ in range(4)]
