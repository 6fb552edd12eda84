"""A tiny network, samples, and an adapter whose updates a test can hold up."""

from __future__ import annotations

import threading
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ssl_suite.adapter import Adapter
from ssl_suite.methods.adaptation.tent import Tent
from ssl_suite.nn.norm import select_parameters

SGD = partial(torch.optim.SGD, lr=0.1, momentum=0.9)
TENT = partial(Tent, optimizer=SGD)
SHAPE = (1, 8, 8)


def net() -> nn.Module:
    """Pictures (B, 1, 8, 8) to four classes; in evaluation mode, with odd statistics."""
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(8)
    norm.running_mean.normal_()
    norm.running_var.uniform_(0.5, 2.0)
    return nn.Sequential(nn.Conv2d(1, 8, 3), norm, nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 4)).eval()


def samples(seed: int = 1, n: int = 32) -> Tensor:
    """Standardised samples (n, 1, 8, 8)."""
    return torch.randn(n, *SHAPE, generator=torch.Generator().manual_seed(seed))


def weights(module: nn.Module) -> dict[str, Tensor]:
    """Copies of parameters and buffers."""
    return {k: v.detach().clone() for k, v in (*module.named_parameters(), *module.named_buffers())}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    """Bit by bit."""
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


class Door:
    """Where an update waits in its middle; one door for all copies of an adapter."""

    def __init__(self) -> None:
        self.reached, self.open = threading.Event(), threading.Event()

    def __deepcopy__(self, memo: dict[int, Any]) -> Door:
        return self



class Held(Adapter):
    """Moves scales and shifts by a fixed step, and waits at the door while only the scales have moved."""

    def __init__(self, model: nn.Module, door: Door) -> None:
        super().__init__(model, select_parameters, SGD)
        self.door = door

    def update(self, x: Tensor, length: Tensor | None, index: Tensor) -> tuple[Tensor, Tensor | None]:
        with torch.no_grad():
            self.learning[0].add_(0.5)
            self.door.reached.set()
            assert self.door.open.wait(60), "nobody opened the door"
            self.learning[1].add_(0.5)
        return x.new_zeros(()), None
