"""Normalisation layers at test time: which parameters to adapt, and which statistics to normalise by."""

from __future__ import annotations

from typing import Literal

import timm.layers
from torch import nn
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


def set_statistics(model: nn.Module, kind: Statistics) -> None:
    """Put a network in evaluation mode, batch norm normalising by stored (source) or by the current batch's statistics.

    Reversible: the stored statistics are kept and never moved. Layers without stored statistics are left alone.
    """
    model.eval()
    for m in model.modules():
        if isinstance(m, _BatchNorm) and m.running_mean is not None:
            # In training mode and without tracking, torch and timm normalise by the batch and touch no buffer.
            m.training, m.track_running_stats = kind == "batch", kind != "batch"
