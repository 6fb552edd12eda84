"""`Adapter`: a trained network that goes on learning from the samples it predicts, with no labels and no trainer."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor, nn

from ssl_suite.batch import AdaptReport
from ssl_suite.io.checkpoints import AtomicCheckpointIO
from ssl_suite.nn.norm import Statistics, set_statistics
from ssl_suite.nn.snapshot import Snapshot, capture, fingerprint, refuse_inference_mode, restore

SCHEMA = 1


class Adapter(nn.Module):
    """Owns a copy of a model, the tensors of it that learn, their optimizer, and what is needed to go back.

    A subclass implements `update`; what it keeps beside weights stands in buffers, so that `reset`, `state_dict` and
    `clone` cover it. Calls are serialised by a lock. Modes are set at every forward pass: `train()`, `eval()` matter not.

    Args:
        model: maps standardised samples, and ``length`` where rows are padded, to logits (B, K); copied.
        select: parameters that learn, of the copy it is given; none where a method learns without gradients.
        optimizer: makes an optimizer from them.
        stats: batch-norm statistics: ``source`` (stored) or ``batch`` (of the samples at hand).
        min_batch: rows from which ``batch`` statistics are trusted; fewer use the stored ones and are not learned from.
        autocast: dtype of forward passes; None is the model's own.
    """

    order: ClassVar[Literal["predict_first", "adapt_first"]] = "predict_first"
    """Logits of `predict_and_adapt`: of the update's own forward pass, or of the updated weights."""
    assumes: ClassVar[Literal["shuffled", "correlated", "told"] | None] = None  # order of samples that predictions rely on
    alike: Tensor  # where it is told: whether neighbours are alike
    seen: Tensor
    used: Tensor | None = None  # rows behind the last update, where a method leaves some out

    def __init__(self, model: nn.Module, select: Callable[[nn.Module], list[nn.Parameter]],
                 optimizer: Callable[..., torch.optim.Optimizer], *, stats: Statistics = "source", min_batch: int = 16,
                 autocast: Literal["bfloat16"] | None = None) -> None:
        super().__init__()
        refuse_inference_mode()
        if stats not in ("source", "batch"):
            raise ValueError(f"stats={stats!r} is not one of 'source', 'batch'")
        self.model = copy.deepcopy(model).requires_grad_(False)
        self.fingerprint = fingerprint(self.model.state_dict())
        self.learning = [p.requires_grad_() for p in select(self.model)]
        self.optimizer = optimizer([{"params": self.learning}])
        self.stats, self.autocast = stats, autocast
        self.min_batch = min_batch if stats == "batch" else 1
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))
        self.lock = threading.RLock()
        self.origin: Snapshot = {}  # the state before the first update

    def update(self, x: Tensor, length: Tensor | None, index: Tensor) -> tuple[Tensor, Tensor | None]:
        """Learn through `learn`; returns the last loss and, where `order` is predict_first, the logits (B, K)."""
        raise NotImplementedError

    def learn(self, loss: Tensor) -> None:
        """One optimizer step."""
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()

    def forward(self, x: Tensor, length: Tensor | None = None, stats: Statistics | None = None) -> Tensor:
        set_statistics(self.model, stats or (self.stats if len(x) >= self.min_batch else "source"))
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self.autocast is not None):
            return (self.model(x) if length is None else self.model(x, length)).float()

    def predict(self, x: Tensor, length: Tensor | None = None) -> Tensor:
        """Logits (B, K) by the weights of the moment. No gradient, no change of state."""
        with self.lock, torch.no_grad():
            return self(x, length)

    def adapt(self, x: Tensor, length: Tensor | None = None, index: Tensor | None = None) -> AdaptReport:
        """Learn from samples; see `predict_and_adapt`."""
        return self.predict_and_adapt(x, length, index)[1]

    def predict_and_adapt(self, x: Tensor, length: Tensor | None = None,
                          index: Tensor | None = None) -> tuple[Tensor, AdaptReport]:
        """Predict samples and learn from them, in the class's `order`; an update with a non-finite number is undone.

        ``index`` (B,) seeds what is drawn for each sample, counted by default. Raises RuntimeError in inference mode.
        """
        refuse_inference_mode()
        with self.lock, torch.enable_grad():
            if len(x) < self.min_batch:
                return self.predict(x, length), AdaptReport(0.0, 0, "skip", f"fewer than {self.min_batch} samples")
            before = capture(self.tensors(), self.optimizer)
            self.origin = self.origin or before
            index = torch.arange(len(x), device=x.device) + self.seen if index is None else index
            try:
                loss, logits = self.update(x.clone() if x.is_inference() else x, length, index)
            except BaseException:
                restore(self.tensors(), self.optimizer, before)
                raise
            logits = self.predict(x, length) if logits is None else logits.detach()
            if not torch.stack([t.isfinite().all() for t in (loss, logits, *self.learning)]).all():
                restore(self.tensors(), self.optimizer, before)
                with torch.no_grad():
                    return self(x, length, "source"), AdaptReport(loss.item(), 0, "skip", "non-finite loss or weights")
            self.seen += len(x)
            return logits, AdaptReport(loss.item(), len(x) if self.used is None else int(self.used))

    def reset(self) -> None:
        """Back to the source model, bit by bit: weights, buffers, optimizer."""
        with self.lock:
            if self.origin:
                restore(self.tensors(), self.optimizer, self.origin)

    def clone(self) -> Self:
        """Another adapter in the same state; it shares the weights that never change and nothing else."""
        with self.lock:
            shared = [self.origin, *(p for p in self.parameters() if not p.requires_grad)]
            return copy.deepcopy(self, {id(self.lock): threading.RLock(), **{id(t): t for t in shared}})

    def tensors(self) -> dict[str, Tensor]:
        """What adapting may change, by name: learned parameters and all buffers."""
        return {name: p for name, p in self.named_parameters() if p.requires_grad} | dict(self.named_buffers())

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:  # type: ignore[override]
        """What adapting changed, and a fingerprint of the source weights, which are not in it."""
        with self.lock:
            return {"schema": SCHEMA, "adapter": type(self).__name__, "fingerprint": self.fingerprint,
                    **capture(self.tensors(), self.optimizer)}

    def load_state_dict(self, state: Any, *args: Any, **kwargs: Any) -> None:  # type: ignore[override]
        """Take over a state; raises ValueError where it belongs to other source weights, adapter or selection."""
        with self.lock:
            own = self.state_dict()
            for key in [k for k in ("schema", "adapter", "fingerprint") if state.get(k) != own[k]]:
                raise ValueError(f"{key} {state.get(key)} of the adapted state is not this adapter's {own[key]}")
            if state["tensors"].keys() != own["tensors"].keys():
                raise ValueError("adapted state holds other tensors than this adapter; build it with the same params")
            self.origin = self.origin or own
            restore(self.tensors(), self.optimizer, state)

    def save(self, path: str | Path) -> None:
        """Write `state_dict` to a file: whole or not at all."""
        AtomicCheckpointIO().save_checkpoint(self.state_dict(), path)

    def load(self, path: str | Path) -> None:
        """Read a file of `save`."""
        self.load_state_dict(AtomicCheckpointIO().load_checkpoint(path))
