"""A bad number never reaches the weights."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import lightning as L
import torch
from lightning.fabric.utilities import move_data_to_device
from torch import Tensor

from ssl_suite.functional.distributed import mean_over_processes
from ssl_suite.io.checkpoints import AtomicCheckpointIO
from ssl_suite.nn.sharding import is_spread, local

SHOWN = 8
"""Samples of a bad batch that the error names; the file holds all."""


class Step(NamedTuple):
    """An optimizer step as one process saw it.

    Attributes:
        number: steps before it.
        seen: its batches, each with its loss; several where gradients are accumulated.
        finite: whether the gradient was, a flag on the device.
    """

    number: int
    seen: list[tuple[Any, Tensor]]
    finite: Tensor


class FiniteGuard(L.Callback):
    """Stops the run when a gradient is not finite, before the optimizer uses it, and keeps the batch.

    On a CPU the check is immediate. On an accelerator the gradients are zeroed in place of a bad step and the flag is
    read one step later, so that no step waits for the device; momentum and weight decay still act once, and the batches of
    one step more stay in memory. Under data parallelism a bad gradient of one process reaches all of them with the usual
    averaging, so every process stops at the same step; where gradients are sharded, each process sees its own part and they
    ask each other.

    The error names the step, the process, whether its own loss was finite (averaged gradients do not tell whose was bad) and
    the samples of its batch, which lies in ``bad_batch_rank=R.pt`` in the run folder, for ``torch.load``. Of accumulated
    batches those are named and kept whose loss was not finite; all where every loss was.
    """

    def __init__(self) -> None:
        self._batch: Any = None
        self._seen: list[tuple[Any, Tensor]] = []
        self._unread: Step | None = None

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int) -> None:
        self._batch = batch

    def on_before_backward(self, trainer: L.Trainer, pl_module: L.LightningModule, loss: Tensor) -> None:
        self._seen.append((self._batch, loss.detach()))

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: L.LightningModule,
                                 optimizer: torch.optim.Optimizer) -> None:
        whole = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        gradients = [local(gradient) for gradient in whole]
        finite = torch.stack(torch._foreach_norm(gradients)).isfinite().all()
        if any(map(is_spread, whole)):
            finite = mean_over_processes(finite.float()) == 1.0
        step, self._seen = Step(trainer.global_step, self._seen, finite), []
        if at_hand(finite):
            check(step, trainer)
            return
        for gradient in gradients:
            gradient.copy_(torch.where(finite, gradient, 0.0))
        if self._unread is not None:
            check(self._unread, trainer)
        self._unread = step

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self._unread is not None:
            check(self._unread, trainer)


def at_hand(x: Tensor) -> bool:
    """Whether a tensor can be read without waiting for the device."""
    return x.device.type == "cpu"


def check(step: Step, trainer: L.Trainer) -> None:
    """Keep and name the batches of a bad step.

    Raises:
        FloatingPointError: its gradient was not finite.
    """
    if step.finite:
        return
    bad = [(batch, loss) for batch, loss in step.seen if not loss.isfinite()]
    batches, losses = [batch for batch, _ in bad or step.seen], [loss for _, loss in bad or step.seen]
    path = Path(trainer.default_root_dir) / f"bad_batch_rank={trainer.global_rank}.pt"
    content = {"step": step.number, "rank": trainer.global_rank, "losses": losses, "batches": batches}
    try:
        AtomicCheckpointIO().save_checkpoint(move_data_to_device(content, "cpu"), path)
        kept = f"is kept in {path}"
    except OSError as error:  # a full disk must not hide the fault
        kept = f"could not be kept: {error}"
    raise FloatingPointError(
        f"a gradient at step {step.number} is not finite and was not used. On process {trainer.global_rank}, whose own loss was "
        f"{'not finite' if bad else 'finite'}, the batch of {named(batches)} {kept}. "
        "Lower optimizer.lr, set trainer.gradient_clip_val=1, or use trainer.precision=32-true")


def named(batches: list[Any]) -> str:
    """The first few samples of batches and how many there are, labelled and unlabelled ones apart."""
    parts: dict[str, list[int]] = {}
    for batch in batches:
        for part, indices in samples(batch):
            parts.setdefault(part, []).extend(indices)
    texts = [f"{part} {', '.join(map(str, indices[:SHOWN]))}{', ...' if len(indices) > SHOWN else ''} ({len(indices)} in all)"
             for part, indices in parts.items()]
    return " and ".join(texts) or "samples without an index"


def samples(batch: Any, part: str = "samples") -> Iterator[tuple[str, list[int]]]:
    """Parts of a batch with the indices of their samples."""
    if isinstance(batch, dict) and "index" in batch:
        yield part, batch["index"].tolist()
    elif isinstance(batch, dict):
        for name, inside in batch.items():
            yield from samples(inside, f"{name} samples")


def features_of(outputs: Any) -> Tensor | None:
    """Detached features a step returned, or None."""
    return outputs.get("features") if isinstance(outputs, dict) else None
