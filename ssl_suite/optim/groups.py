"""Parameter groups: what gets weight decay, and which layers learn at which rate."""

from __future__ import annotations

import re
from typing import Any

from torch import nn


def parameter_groups(module: nn.Module) -> list[dict[str, Any]]:
    """Trainable parameters in two groups: weights, and biases with norm parameters (one axis or none), which do not decay.

    The cookbook of self-supervised learning (arXiv 2304.12210) and the official MAE, BYOL and FixMatch recipes agree on this.

    Returns:
        Optimizer groups without empty ones; every trainable parameter stands in exactly one.
    """
    trainable = [p for p in module.parameters() if p.requires_grad]
    decay = {"params": [p for p in trainable if p.ndim > 1]}
    plain = {"params": [p for p in trainable if p.ndim <= 1], "weight_decay": 0.0}
    return [group for group in (decay, plain) if group["params"]]


def layer_groups(backbone: nn.Module, rest: list[nn.Module], lr: float, decay: float) -> list[dict[str, Any]]:
    """Groups whose rate falls by ``decay`` with each layer counted from the head (layer-wise decay of BEiT and MAE).

    A layer is a numbered module (``blocks.3``, ``layer2.0``), or what stands unnumbered before, between or after such modules, in
    the order of the backbone's parameters. A final norm after the last numbered module learns at the full rate.

    Args:
        backbone: the pre-trained network.
        rest: modules that learn at the full rate (the head).
        lr: full rate.
        decay: factor per layer, in (0, 1].

    Returns:
        Optimizer groups, each with ``lr`` and, for biases and norms, ``weight_decay`` 0.
    """
    layers: list[tuple[str, nn.ParameterList]] = []
    for name, p in backbone.named_parameters():
        numbered = re.match(r"(.*?\.)?\d+(?=\.)", name)
        layer = numbered[0] if numbered else ""
        if not layers or layers[-1][0] != layer:
            layers.append((layer, nn.ParameterList()))
        layers[-1][1].append(p)
    top = len(layers) if layers and layers[-1][0] else len(layers) - 1
    groups = []
    for level, (_, params) in enumerate(layers):
        groups += [{**g, "lr": lr * decay ** (top - level)} for g in parameter_groups(params)]
    for module in rest:
        groups += [{**g, "lr": lr} for g in parameter_groups(module)]
    return groups
