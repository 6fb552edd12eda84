"""A bad number never reaches the weights."""

from __future__ import annotations

from typing import Any

import lightning as L
import torch
from torch import Tensor

from ssl_suite.functional.distributed import mean_over_processes
from ssl_suite.nn.sharding import is_spread, local


class FiniteGuard(L.Callback):
    """Stops the run when a gradient is not finite, before the optimizer uses it.

    On a CPU the check is immediate. On an accelerator the gradients are zeroed in place of a bad step and the flag is
    read one step later, so that no step waits for the device; momentum and weight decay still act once. Under data
    parallelism a bad gradient of one process reaches all of them with the usual averaging, so every process stops at
    the same step; where gradients are sharded, each process sees its own part and they ask each other.
    """

    def __init__(self) -> None:
        self._flag: Tensor | None = None

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: L.LightningModule,
                                 optimizer: torch.optim.Optimizer) -> None:
        whole = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        gradients = [local(gradient) for gradient in whole]
        finite = torch.stack(torch._foreach_norm(gradients)).isfinite().all()
        if any(map(is_spread, whole)):
            finite = mean_over_processes(finite.float()) == 1.0
        if finite.device.type == "cpu":
            self._check(finite, trainer.global_step)
            return
        for gradient in gradients:
            gradient.copy_(torch.where(finite, gradient, 0.0))
        if self._flag is not None:
            self._check(self._flag, trainer.global_step - 1)
        self._flag = finite

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self._flag is not None:
            self._check(self._flag, trainer.global_step)

    @staticmethod
    def _check(finite: Tensor, step: int) -> None:
        if not finite:
            raise FloatingPointError(
                f"a gradient at step {step} is not finite and was not used. "
                "Lower optimizer.lr, set trainer.gradient_clip_val=1, or use trainer.precision=32-true")


def features_of(outputs: Any) -> Tensor | None:
    """Detached features a step returned, or None."""
    return outputs.get("features") if isinstance(outputs, dict) else None
