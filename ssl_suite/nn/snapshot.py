"""Copies of what learning changes, to go back to it bit by bit; and a name for weights."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

Snapshot = dict[str, Any]
"""``tensors``: copies by name; ``optimizer``: its state. Plain containers, fit for a weights-only file."""


def capture(tensors: Mapping[str, Tensor], optimizer: torch.optim.Optimizer) -> Snapshot:
    """Copy tensors and the state of their optimizer."""
    return {"tensors": {name: t.detach().clone() for name, t in tensors.items()},
            "optimizer": copy.deepcopy(optimizer.state_dict())}


@torch.no_grad()
def restore(tensors: Mapping[str, Tensor], optimizer: torch.optim.Optimizer, snapshot: Snapshot) -> None:
    """Write a snapshot back in place, bit by bit; the snapshot stays untouched by what follows."""
    optimizer.load_state_dict(copy.deepcopy(snapshot["optimizer"]))
    for name, t in tensors.items():
        t.copy_(snapshot["tensors"][name])


def fingerprint(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, types, shapes and bytes, the same on every device."""
    digest = hashlib.sha256()
    for name, t in sorted(tensors.items()):
        digest.update(f"{name} {t.dtype} {tuple(t.shape)};".encode())
        digest.update(t.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def refuse_inference_mode() -> None:
    """Raises RuntimeError in inference mode, where nothing can learn."""
    if torch.is_inference_mode_enabled():
        raise RuntimeError("an Adapter cannot learn in inference mode; use Trainer(inference_mode=False), or "
                           "torch.no_grad()")
