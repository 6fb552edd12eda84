"""Two gloo processes that stay up for a whole test session and run functions side by side."""

from __future__ import annotations

import os
import socket
import traceback
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

WORLD = 2


def serve(rank: int, port: int, tasks: Any, answers: Any) -> None:
    """A worker: joins the group, then answers calls until it is told to stop.

    The variables are those of ``torchrun``, so that a `lightning.Trainer` takes its place in the group, too.
    """
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "RANK": str(rank), "LOCAL_RANK": str(rank),
                   "GROUP_RANK": "0", "WORLD_SIZE": str(WORLD), "LOCAL_WORLD_SIZE": str(WORLD), "TORCHELASTIC_RUN_ID": "tests"}
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    for call, function, arguments in iter(tasks.get, None):
        try:
            answers.put((call, rank, function(*arguments), None))
        except Exception:
            answers.put((call, rank, None, traceback.format_exc()))
    dist.destroy_process_group()


class Pair:
    """Calls a function in both processes; both must come back within ``timeout`` seconds."""

    def __init__(self, timeout: float = 120.0) -> None:
        context, self.timeout, self.calls = mp.get_context("spawn"), timeout, 0
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.tasks, self.answers = [context.SimpleQueue() for _ in range(WORLD)], context.Queue()
        self.processes = [context.Process(target=serve, args=(rank, port, self.tasks[rank], self.answers), daemon=True)
                          for rank in range(WORLD)]
        for process in self.processes:
            process.start()

    def __call__(self, function: Callable[..., Any], *arguments: Any) -> list[Any]:
        """What the function returned, in rank order.

        Raises:
            AssertionError: it raised in one of them; the message is the traceback there.
        """
        self.calls += 1
        for tasks in self.tasks:
            tasks.put((self.calls, function, arguments))
        answers: dict[int, tuple[Any, str | None]] = {}
        while len(answers) < WORLD:
            call, rank, result, error = self.answers.get(timeout=self.timeout)
            if call == self.calls:  # others come late, from a call that was given up
                answers[rank] = result, error
        for rank, (_, error) in sorted(answers.items()):
            assert error is None, f"process {rank}:\n{error}"
        return [answers[rank][0] for rank in range(WORLD)]

    def close(self) -> None:
        """End both processes."""
        for tasks, process in zip(self.tasks, self.processes, strict=True):
            tasks.put(None)
            process.join(10.0)
            process.kill()
