"""A tiny backbone with BatchNorm, a tiny batch of pictures, and views that move pixels: shared by the parity tests."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ssl_suite.batch import Batch
from ssl_suite.functional.random import Draw
from ssl_suite.views import Views


class Tiny(nn.Module):
    num_features = 16

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm, self.out = nn.Conv2d(1, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.Linear(128, 16)

    def forward(self, x: Tensor, length: Tensor | None = None) -> Tensor:
        return self.out(self.norm(self.stem(x)).relu().flatten(1))


class Noise:
    def __init__(self, scale: float) -> None:
        self.scale = scale

    def __call__(self, x: Tensor, draw: Draw, length: Tensor | None) -> Tensor:
        return x + self.scale * draw.normal(*x.shape[1:])


def views(weak: float = 0.05, strong: float = 0.3) -> Views:
    return Views({"weak": [Noise(weak)], "strong": [Noise(strong)], "crop": [Noise(strong)]})


def pictures(n: int, first: int = 0, labels: bool = True, epoch: int = 0) -> Batch:
    generator = torch.Generator().manual_seed(first)
    batch = {"x": torch.randint(0, 256, (n, 1, 8, 8), dtype=torch.uint8, generator=generator),
             "index": torch.arange(first, first + n), "epoch": torch.full((n,), epoch)}
    return {**batch, "y": torch.arange(n) % 3} if labels else batch


def semi(b: int = 6, m: int = 12) -> Batch:
    return {"labeled": pictures(b), "unlabeled": pictures(m, first=100, labels=False)}


def gradients(module: nn.Module) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}
