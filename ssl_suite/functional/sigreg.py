"""SIGReg: how far embeddings are from an isotropic Gaussian, along random directions (LeJEPA, arXiv 2511.08544)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_suite.functional.distributed import sum_over_processes, world_size
from ssl_suite.functional.precision import full_precision
from ssl_suite.functional.random import Draw, sample_keys


def directions(count: int, dim: int, step: int, device: torch.device, seed: int = 0) -> Tensor:
    """Random unit vectors, (count, dim) float32, a function of (seed, step): the same on every process and after a resume.

    Args:
        count: directions M.
        dim: width D of the embeddings.
        step: optimizer step; another step, other directions.
        device: where they are made.
        seed: seed of the run.
    """
    index = torch.arange(count, device=device)
    return F.normalize(Draw(sample_keys(seed, torch.full_like(index, step), index)).normal(dim), dim=1)


@full_precision
def sigreg(z: Tensor, directions: Tensor, knots: int = 17, t_max: float = 3.0) -> Tensor:
    """Epps-Pulley statistic of the samples of all processes, averaged over directions and over leading axes, in float32.

    Along a direction a: N times the integral over [-t_max, t_max] of |mean_n exp(i t a.z_n) - exp(-t^2 / 2)|^2 exp(-t^2 / 2) dt, by
    the trapezoid rule on ``knots`` points of [0, t_max], doubled. For a standard normal z it stays of order 1 whatever N; for a
    constant z it grows with N.

    Args:
        z: embeddings, (..., B, D); every leading index (a view) has a statistic of its own.
        directions: unit vectors, (M, D), the same on every process.
        knots: points of the integral.
        t_max: its end.

    Returns:
        Scalar with gradient to the rows of every process.
    """
    t = torch.linspace(0.0, t_max, knots, device=z.device)
    gauss = torch.exp(-t.square() / 2)
    weight = torch.full_like(t, 2.0 * t_max / (knots - 1)) * gauss
    weight[0] /= 2.0
    weight[-1] /= 2.0
    count = z.shape[-2] * world_size()
    phase = (z.float() @ directions.T)[..., None] * t
    real, imaginary = sum_over_processes(torch.stack([phase.cos().sum(-3), phase.sin().sum(-3)])) / count
    return (((real - gauss).square() + imaginary.square()) @ weight).mean() * count
