"""The linear classifier on top of a network, and what goes into it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


def linear_head(model: nn.Module) -> nn.Linear:
    """The linear layer that makes the logits: attribute ``head``, or else the last linear layer of the model.

    Raises:
        ValueError: there is none.
    """
    head = getattr(model, "head", None)
    if not isinstance(head, nn.Linear):
        head = next((m for m in reversed([*model.modules()]) if isinstance(m, nn.Linear)), None)
    if head is None:
        raise ValueError(f"{type(model).__name__} has no linear classifier; give it an attribute 'head' that is an "
                         "nn.Linear, or adapt with model=tent")
    return head


class FeatureTap:
    """Catches what goes into and comes out of the linear head during a forward pass.

    Args:
        model: see `linear_head`.

    Raises:
        ValueError: the model has no linear head.
    """

    def __init__(self, model: nn.Module) -> None:
        self.head = linear_head(model)
        self._caught: tuple[Tensor, Tensor] | None = None
        self._checked = False
        self.head.register_forward_hook(self._catch)

    def _catch(self, layer: Any, args: tuple[Tensor, ...], output: Tensor) -> None:
        self._caught = args[0], output

    def take(self, logits: Tensor) -> Tensor:
        """Features (B, D), float32, of the forward pass that gave these logits; forgotten afterwards.

        Raises:
            ValueError: the logits are not the head's output, found out at the first call.
        """
        caught, self._caught = self._caught, None
        if caught is None or caught[1].shape != logits.shape or not (
                self._checked or torch.equal(caught[1].float().nan_to_num(), logits.float().nan_to_num())):
            raise ValueError("the logits are not the output of the model's last linear layer, so its features are "
                             "unknown; give the model an attribute 'head', or adapt with model=tent")
        self._checked = True
        return caught[0].float()
