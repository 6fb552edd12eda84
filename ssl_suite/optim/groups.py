"""Parameter groups: what gets weight decay, and which layers learn at which rate."""

from __future__ import annotations

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

    Layers are the children of the longest ``ModuleList`` or ``Sequential`` in the backbone (transformer blocks, stages).
    Parameters before them are the lowest layer, parameters after them the highest.

    Args:
        backbone: the pre-trained network.
        rest: modules that learn at the full rate (the head).
        lr: full rate.
        decay: factor per layer, in (0, 1].

    Returns:
        Optimizer groups, each with ``lr`` and, for biases and norms, ``weight_decay`` 0.
    """
    stacks = [(name, m) for name, m in backbone.named_modules() if isinstance(m, nn.ModuleList | nn.Sequential)]
    stack_name, stack = max(stacks, key=lambda item: (len(item[1]), -len(item[0])), default=("", nn.Sequential()))
    depth = len(stack)
    by_depth: dict[int, nn.ParameterList] = {}
    seen_stack = False
    for name, p in backbone.named_parameters():
        inside = bool(depth) and name.startswith(f"{stack_name}." if stack_name else "")
        tail = name[len(stack_name) + 1 if stack_name else 0 :].split(".")[0]
        if inside and tail.isdigit():
            level, seen_stack = int(tail) + 1, True
        else:
            level = depth + 1 if seen_stack else 0
        by_depth.setdefault(level, nn.ParameterList()).append(p)
    groups = []
    for level, params in sorted(by_depth.items()):
        groups += [{**g, "lr": lr * decay ** (depth + 1 - level)} for g in parameter_groups(params)]
    for module in rest:
        groups += [{**g, "lr": lr} for g in parameter_groups(module)]
    return groups
