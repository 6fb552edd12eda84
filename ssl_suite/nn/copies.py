"""Second weights for a network in buffers: teachers and anchors that a snapshot covers."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.func import functional_call


class TensorCopies(nn.Module):
    """Copies of tensors, held in buffers in the order given.

    Args:
        tensors: what to copy.
    """

    def __init__(self, tensors: Iterable[Tensor]) -> None:
        super().__init__()
        for i, t in enumerate(tensors):
            self.register_buffer(f"copy{i}", t.detach().clone())

    @property
    def tensors(self) -> list[Tensor]:
        """The copies."""
        return list(self.buffers())


class WeightCopies(TensorCopies):
    """Another set of weights, and of floating-point buffers, for a module.

    Args:
        module: what to copy from; its own weights stay what they are.
        prefix: name of the part that gets weights of its own; everything by default.
    """

    def __init__(self, module: nn.Module, prefix: str = "") -> None:
        self.names = [n for n, _ in _floating(module) if n.startswith(prefix)]
        super().__init__(t for n, t in _floating(module) if n.startswith(prefix))

    def run(self, module: nn.Module, *args: Tensor | None) -> Tensor:
        """The module's forward pass with these weights in place of its own; in-place changes of buffers land here."""
        return functional_call(module, dict(zip(self.names, self.tensors, strict=True)), args)

    @torch.no_grad()
    def follow(self, module: nn.Module, momentum: float) -> None:
        """Move towards the module's weights: t <- momentum * t + (1 - momentum) * s; buffers stay as they are."""
        own = dict(module.named_parameters())
        pairs = [(t, own[n]) for n, t in zip(self.names, self.tensors, strict=True) if n in own]
        torch._foreach_lerp_([t for t, _ in pairs], [s for _, s in pairs], 1.0 - momentum)


def _floating(module: nn.Module) -> list[tuple[str, Tensor]]:
    named = [*module.named_parameters(), *module.named_buffers()]
    return [(n, t) for n, t in named if t.is_floating_point()]
