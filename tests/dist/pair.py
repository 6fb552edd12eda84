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
    for function, arguments in iter(tasks.get, None):
        try:
            answers.put((rank, function(*arguments), None))
        except Exception:
            answers.put((rank, None, traceback.format_exc()))
    dist.destroy_process_group()


class Pair:
    """Calls a function in both processes; both must come back within ``timeout`` seconds."""

    def __init__(self, timeout: float = 120.0) -> None:
        context, self.timeout = mp.get_context("spawn"), timeout
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
        for tasks in self.tasks:
            tasks.put((function, arguments))
        answers = sorted((self.answers.get(timeout=self.timeout) for _ in range(WORLD)), key=lambda answer: answer[0])
        for rank, _, error in answers:
            assert error is None, f"process {rank}:\n{error}"
        return [result for _, result, _ in answers]

    def close(self) -> None:
        """End both processes."""
        for tasks, process in zip(self.tasks, self.processes, strict=True):
            tasks.put(None)
            process.join(10.0)
            process.kill()
