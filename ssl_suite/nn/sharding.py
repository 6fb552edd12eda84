"""Weights spread over the processes (FSDP2), and put together again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, Partial


def shard(module: nn.Module, mesh: DeviceMesh, entries: Sequence[str]) -> None:
    """Spread the weights of a module over the processes of a mesh, in place; done once, a second call changes nothing.

    The members of each outermost list of layers (the blocks of a transformer) are gathered one by one when they compute,
    all other weights together for the length of an entry.

    Args:
        module: the whole; gets DTensor parameters.
        mesh: one-dimensional mesh of processes.
        entries: methods of the module that use its weights, beside ``forward``.
    """
    if isinstance(module, FSDPModule):
        return
    module.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]  # FSDP2 takes no channels-last weights
    for layer in dict.fromkeys(layers(module)):  # a layer may stand in two branches
        fully_shard(layer, mesh=mesh)
    fully_shard(module, mesh=mesh)
    for entry in entries:
        register_fsdp_forward_method(module, entry)


def layers(module: nn.Module) -> list[nn.Module]:
    """Members of the outermost lists and sequences of layers that hold further modules."""
    if isinstance(module, nn.ModuleList | nn.Sequential):
        return [child for child in module if any(child.children())]
    return [layer for child in module.children() for layer in layers(child)]


def unfuse_sgd(optimizer: torch.optim.Optimizer) -> None:
    """Let SGD step with one kernel for each operation where weights are spread, for which PyTorch has no fused one; others stay."""
    for group in optimizer.param_groups:
        if isinstance(optimizer, torch.optim.SGD) and any(map(is_spread, group["params"])):
            group |= {"fused": False, "foreach": True}


def is_sharded(module: nn.Module) -> bool:
    """Whether `shard` was here."""
    return isinstance(module, FSDPModule)


def is_spread(x: Tensor) -> bool:
    """Whether each process holds a part of a tensor."""
    return isinstance(x, DTensor)


def local(x: Tensor) -> Tensor:
    """The part of a tensor that this process holds; the tensor itself where it is not sharded."""
    return x.to_local() if isinstance(x, DTensor) else x


def gathered(x: Tensor) -> Tensor:
    """The whole of a tensor that is spread over processes, whose gradients are averaged on the way back; else the tensor itself."""
    return x.full_tensor(grad_placements=[Partial("avg")] * x.device_mesh.ndim) if isinstance(x, DTensor) else x


def whole_state(module: nn.Module) -> dict[str, Any]:
    """The state_dict of a sharded module with whole tensors, on the CPU of the first process; empty on the others.

    All processes must call it.
    """
    return get_model_state_dict(module, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
