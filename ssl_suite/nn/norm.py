"""Normalisation layers: which parameters to adapt at test time, and which statistics to normalise by."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import timm.layers
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

Selection = Literal["norm_affine", "encoder", "all"]
Statistics = Literal["source", "batch"]

NORM_LAYERS = (_BatchNorm, _InstanceNorm, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm, timm.layers.RmsNorm)
"""Types with a scale and shift per channel; timm's fused norm-activation layers derive from them."""


def select_parameters(model: nn.Module, kind: Selection = "norm_affine") -> list[nn.Parameter]:
    """Parameters to adapt, chosen by the type of their module and never by its name.

    Args:
        model: network in deployment.
        kind: ``norm_affine``, the scales and shifts of all normalisation layers; ``encoder``, everything in
            ``model.backbone``; ``all``.

    Raises:
        ValueError: an unknown kind, or one that selects nothing on this model.
    """
    if kind == "norm_affine":
        chosen = [p for m in model.modules() if isinstance(m, NORM_LAYERS) for p in m.parameters(recurse=False)]
    elif kind == "encoder":
        backbone = getattr(model, "backbone", None)
        chosen = list(backbone.parameters()) if isinstance(backbone, nn.Module) else []
    elif kind == "all":
        chosen = list(model.parameters())
    else:
        raise ValueError(f"params={kind!r} is not one of 'norm_affine', 'encoder', 'all'")
    if not chosen:
        remedy = {"norm_affine": "normalisation layers with a scale and shift; choose params='all'",
                  "encoder": "attribute 'backbone'; choose params='all'", "all": "parameters"}[kind]
        raise ValueError(f"params={kind!r} selects nothing: {type(model).__name__} has no {remedy}")
    return chosen


def select_lower_norms(model: nn.Module, skip_top: float) -> list[nn.Parameter]:
    """Scales and shifts of all normalisation layers but the topmost, in the order in which the model lists its modules.

    Args:
        model: network in deployment.
        skip_top: share of the layers, rounded up, that is left out; 0.25 leaves out the last three blocks and the final
            norm of a ViT-B, 7 of 25 layers.

    Raises:
        ValueError: a share outside [0, 1), or one that leaves nothing.
    """
    if not 0.0 <= skip_top < 1.0:
        raise ValueError(f"adapter.skip_top={skip_top} must lie in [0, 1); 0.25 leaves out the top quarter")
    select_parameters(model)  # says so where there are none
    layers = [m for m in model.modules() if isinstance(m, NORM_LAYERS) and [*m.parameters(recurse=False)]]
    kept = layers[: len(layers) - math.ceil(skip_top * len(layers))]
    if not kept:
        raise ValueError(f"adapter.skip_top={skip_top} leaves none of the {len(layers)} normalisation layers of "
                         f"{type(model).__name__}; set adapter.skip_top=0")
    return [p for m in kept for p in m.parameters(recurse=False)]


class BlendedStatistics:
    """Batch norm by (1 - alpha) * stored + alpha * batch statistics, laid over the layers of a model by hooks.

    The model is to stand in evaluation mode, ``set_statistics(model, "source")``. A hook moves and stretches what enters
    a layer so that the layer's own arithmetic, by stored statistics, comes out as normalisation by the blend: layers
    with a fused activation are served too. The gradient flows through the batch's part.

    Args:
        model: its layers get the hooks; the variance of a batch is the biased one.
        alpha: share of the batch, in [0, 1].

    Attributes:
        active: whether the hooks do anything.
        tracking: whether the blend becomes the stored statistics, a moving average with momentum ``alpha``.

    Raises:
        ValueError: the share lies outside, or no layer has stored statistics.
    """

    def __init__(self, model: nn.Module, alpha: float) -> None:
        if not 0.0 <= alpha <= 1.0:
            raise ValueError(f"adapter.alpha={alpha} must lie in [0, 1]; 0 is the source statistics, 1 the batch's")
        layers = batch_norms(model)
        if not layers:
            raise ValueError(f"{type(model).__name__} has no batch norm with stored statistics to blend with the batch's; "
                             "train one with batch norm, or adapt with model=tent, model=t3a or model=lame")
        self.alpha, self.active, self.tracking = alpha, True, False
        for layer in layers:
            layer.register_forward_pre_hook(self._blend)

    def _blend(self, layer: Any, args: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        if not self.active:
            return None
        x, stored = args[0], (layer.running_mean, layer.running_var)
        batch_var, batch_mean = torch.var_mean(x.to(stored[0].dtype), [d for d in range(x.ndim) if d != 1], correction=0)
        mean, var = (torch.lerp(s, b, self.alpha) for s, b in zip(stored, (batch_mean, batch_var), strict=True))
        if self.tracking:
            for s, new in zip(stored, (mean, var), strict=True):
                s.copy_(new.detach())
        return (_as_normalised(layer, x, *(t.view(1, -1, *(1,) * (x.ndim - 2)) for t in (mean, var))), *args[1:])


class InstanceAwareStatistics:
    """Batch norm corrected per sample where the sample's own statistics are surely others: NOTE, arXiv 2208.05117.

    Laid over the layers of a model by hooks, as `BlendedStatistics` is. With mu and sigma^2 of the layer (stored, or of
    the batch while ``tracking``) and the N positions of a channel, a sample's mean and variance count by as much as they
    differ by more than k standard errors, sqrt(sigma^2 / N) and sigma^2 sqrt(2 / (N - 1)). The gradient flows through the
    sample's part and, while tracking, through the batch's.

    Args:
        model: its layers get the hooks; variances are the unbiased ones.
        k: width of what counts as chance, in standard errors; ``math.inf`` is ordinary batch norm.
        momentum: share of a batch in the stored statistics while tracking.

    Attributes:
        tracking: whether to normalise by the batch and to move the stored statistics towards it.

    Raises:
        ValueError: a value out of range.
    """

    def __init__(self, model: nn.Module, k: float, momentum: float) -> None:
        if not k >= 0.0 or not 0.0 <= momentum <= 1.0:
            raise ValueError(f"adapter.k={k} must be at least 0 and adapter.momentum={momentum} in [0, 1]; the paper's are 4 "
                             "and 0.01")
        self.k, self.momentum, self.tracking = k, momentum, False
        for layer in batch_norms(model):
            layer.register_forward_pre_hook(self._correct)

    def _correct(self, layer: Any, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        x = args[0].to(layer.running_mean.dtype)
        n, shape = x[0, 0].numel(), (1, -1, *(1,) * (x.ndim - 2))
        if self.tracking and len(x) * n > 1:  # a single value has no variance
            var, mean = torch.var_mean(x, [d for d in range(x.ndim) if d != 1], keepdim=True)
            for stored, new in ((layer.running_mean, mean), (layer.running_var, var)):
                stored.lerp_(new.detach().flatten(), self.momentum)
        else:
            mean, var = layer.running_mean.view(shape), layer.running_var.view(shape)
        if n > 1 and self.k < math.inf:
            own_var, own_mean = torch.var_mean(x, [*range(2, x.ndim)], keepdim=True)
            spread = var + layer.eps
            mean = mean + _soft_shrink(own_mean - mean, self.k * (spread / n).sqrt())
            var = (var + _soft_shrink(own_var - var, self.k * spread * math.sqrt(2.0 / (n - 1)))).relu()
        return (_as_normalised(layer, args[0], mean, var), *args[1:])


def _soft_shrink(x: Tensor, width: Tensor) -> Tensor:
    """Moved towards 0 by ``width``, and 0 where it is closer than that."""
    return (x - width).relu() - (-x - width).relu()


def _as_normalised(layer: Any, x: Tensor, mean: Tensor, var: Tensor) -> Tensor:
    """Move and stretch ``x`` so that the layer, by its stored statistics, normalises it by ``mean`` and ``var``."""
    stored = (layer.running_mean, layer.running_var)
    centre, spread = (t.view(1, -1, *(1,) * (x.ndim - 2)) for t in stored)
    return ((x - mean) * ((spread + layer.eps) / (var + layer.eps)).sqrt() + centre).to(x.dtype)


def batch_norms(model: nn.Module) -> list[nn.Module]:
    """Batch-norm layers that have stored statistics."""
    return [m for m in model.modules() if isinstance(m, _BatchNorm) and m.running_mean is not None]


def set_statistics(model: nn.Module, kind: Statistics) -> None:
    """Put a network in evaluation mode, batch norm normalising by stored (source) or by the current batch's statistics.

    Reversible: the stored statistics are kept and never moved. Layers without stored statistics are left alone.
    """
    model.eval()
    for m in model.modules():
        if isinstance(m, _BatchNorm) and m.running_mean is not None:
            # In training mode and without tracking, torch and timm normalise by the batch and touch no buffer.
            m.training, m.track_running_stats = kind == "batch", kind != "batch"


@contextmanager
def frozen_statistics(module: nn.Module) -> Iterator[None]:
    """BatchNorm normalises by the batch as usual and leaves its running statistics alone."""
    norms = [m for m in module.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    for norm in norms:
        norm.track_running_stats = False
    try:
        yield
    finally:
        for norm in norms:
            norm.track_running_stats = True
