from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from ssl_suite.functional.random import Draw, sample_keys


@pytest.fixture(scope="session")
def make_draw() -> Callable[..., Draw]:
    """Draws of samples by number, as a datamodule would give them."""

    def draw(index: Tensor | int, seed: int = 0, epoch: int = 0) -> Draw:
        index = torch.arange(index) if isinstance(index, int) else index
        return Draw(sample_keys(seed, torch.full_like(index, epoch), index))

    return draw


@pytest.fixture(scope="session")
def pictures() -> Tensor:
    """Six smooth and coloured pictures of 8-bit levels, (6, 3, 16, 20)."""
    noise = torch.rand(6, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    smooth = torch.nn.functional.interpolate(noise, (16, 20), mode="bilinear", align_corners=True)
    return (smooth * 255).round() / 255


@pytest.fixture(scope="session")
def waves() -> Tensor:
    """Tones with noise, zero behind their lengths, (6, 800) at 8 kHz."""
    time = torch.arange(800) / 8000
    pitch = torch.tensor([200.0, 350.0, 500.0, 700.0, 900.0, 1100.0])[:, None]
    noise = torch.randn(6, 800, generator=torch.Generator().manual_seed(1))
    return 0.3 * torch.sin(2 * torch.pi * pitch * time) * (1 + torch.cos(40 * time)) + 0.02 * noise


@pytest.fixture(scope="session")
def series() -> Tensor:
    """Smooth series of three channels of different units, (6, 3, 100)."""
    steps = torch.randn(6, 3, 100, generator=torch.Generator().manual_seed(2)).cumsum(-1)
    return steps * torch.tensor([1.0, 10.0, 0.1])[:, None] + 2.0
