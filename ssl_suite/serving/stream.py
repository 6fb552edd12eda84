"""One stream of samples: an adapter of its own, guarded, within a budget, and readers that never wait for it."""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ssl_suite.adapter import Adapter
from ssl_suite.batch import AdaptReport
from ssl_suite.io.checkpoints import AtomicCheckpointIO
from ssl_suite.nn.snapshot import refuse_inference_mode
from ssl_suite.serving.budget import Budget
from ssl_suite.serving.guard import CollapseGuard

logger = logging.getLogger(__name__)


class Published(NamedTuple):
    """What readers predict by: tensors of the adapter, or the source model where it is set aside."""

    version: int
    tensors: dict[str, Tensor]
    aside: bool


class Stream:
    """An adapter in service: the calls of `Adapter`, safe from many threads.

    One writer at a time adapts; `predict` goes by the last finished update and never waits for the one under way.

    Args:
        adapter: belongs to this stream from now on.
        source: the model it adapts, in evaluation mode; only read, and shared by all streams.
        guard: watches the predictions; None lets the adapter do as it likes.
        budget: of time and memory; none by default.
        shape: shape of one sample, None where a size may vary; checked where given.

    Attributes:
        counts: batches by verdict, and samples ``predicted`` and ``learned``.
    """

    def __init__(self, adapter: Adapter, source: nn.Module, *, guard: CollapseGuard | None = None, budget: Budget | None = None,
                 shape: Sequence[int | None] | None = None) -> None:
        self.adapter, self.source, self.guard, self.budget = adapter, source, guard, budget or Budget()
        self.shape = None if shape is None else tuple(shape)
        self.counts: Counter[str] = Counter()
        self.lock, self.tally = threading.RLock(), threading.Lock()
        self.tell(adapter)
        self.still, self.idle = adapter.clone(), [(0, adapter.clone())]
        self.published = Published(0, copies(adapter), False)

    def predict(self, x: Tensor, length: Tensor | None = None) -> Tensor:
        """Logits (B, K) by the last finished update. No change of state.

        Raises:
            ValueError: samples of another shape.
        """
        self.check(x)
        state = self.published
        self.count(predicted=len(x))
        if state.aside:
            return self.by_source(x, length)
        try:
            version, reader = self.idle.pop()
        except IndexError:
            version, reader = -1, self.still.clone()
        if version != state.version:
            with torch.no_grad():
                for name, t in reader.tensors().items():
                    t.copy_(state.tensors[name])
        logits = reader.predict(x, length)
        self.idle.append((state.version, reader))
        return logits

    def adapt(self, x: Tensor, length: Tensor | None = None, index: Tensor | None = None) -> AdaptReport:
        """Learn from samples; see `predict_and_adapt`."""
        return self.predict_and_adapt(x, length, index)[1]

    def predict_and_adapt(self, x: Tensor, length: Tensor | None = None,
                          index: Tensor | None = None) -> tuple[Tensor, AdaptReport]:
        """Predict samples and learn from them, as `Adapter.predict_and_adapt`, unless guard or budget object.

        Where the guard objects the logits are the source model's; where the budget does, the adapter's as it stands.

        Raises:
            ValueError: samples of another shape.
            RuntimeError: in inference mode.
        """
        refuse_inference_mode()
        self.check(x)
        with self.lock:
            start = time.perf_counter()
            logits, report = self._step(x, length, index)
            report = replace(report, ms=1e3 * (time.perf_counter() - start))
            self.count(**{report.verdict: 1}, predicted=len(x), learned=report.n_used)
            if report.verdict != "ok":
                logger.info("%s: %s", report.verdict, report.reason)
            return logits, report

    def _step(self, x: Tensor, length: Tensor | None, index: Tensor | None) -> tuple[Tensor, AdaptReport]:
        if not len(x):
            return self.by_source(x, length), AdaptReport(0.0, 0, "skip", "no samples")
        source = self.by_source(x, length) if self.guard is not None else None
        if source is not None and not source.isfinite().all():
            return source, AdaptReport(0.0, 0, "skip", "non-finite logits of the source model")
        unlearned = cache(partial(self.unlearned, x, length))
        if source is not None and self.guard is not None and (reason := self.guard.objects(self.adapter, source, unlearned)):
            self.publish(aside=True)
            return source, AdaptReport(0.0, 0, "skip", reason)
        self.tell(self.adapter, self.still)
        if self.published.aside:
            self.publish(aside=False)
        if self.guard is not None and self.guard.disabled:
            return self.adapter.predict(x, length), AdaptReport(0.0, 0, "skip", "learning was switched off; reset() switches it on")
        if reason := self.budget.refuses(x):
            return self.adapter.predict(x, length), AdaptReport(0.0, 0, "skip", reason)
        start = time.perf_counter()
        with self.budget.measured(x, self.adapter.parameters()):
            logits, report = self.adapter.predict_and_adapt(x, length, index)
        self.budget.spent(1e3 * (time.perf_counter() - start))
        if source is not None and self.guard is not None and report.verdict == "ok":
            plain = type(self.still).predict is Adapter.predict  # then `unlearned` gives the same, and may have it already
            verdict, reason = self.guard.judge(self.adapter, logits, unlearned if plain else partial(self.still.predict, x, length))
            if verdict != "ok":
                logits, report = self.still.predict(x, length), replace(report, n_used=0, verdict=verdict, reason=reason)
        self.publish(aside=False)
        return logits, report

    def unlearned(self, x: Tensor, length: Tensor | None = None) -> Tensor:
        """Logits (B, K) of the source weights with the adapter's statistics, without what it makes of them."""
        with torch.no_grad():
            logits: Tensor = self.still(x, length)
            return logits

    def by_source(self, x: Tensor, length: Tensor | None = None) -> Tensor:
        """Logits (B, K) of the source model."""
        with torch.no_grad(), torch.autocast(x.device.type, torch.bfloat16, enabled=self.adapter.autocast is not None):
            return (self.source(x) if length is None else self.source(x, length)).float()

    def check(self, x: Tensor) -> None:
        """Raises ValueError for samples of another shape than this stream's."""
        if self.shape is None or (x.ndim == len(self.shape) + 1 and all(b in (None, a) for a, b in zip(
                x.shape[1:], self.shape, strict=True))):
            return
        takes = ", ".join("any" if size is None else str(size) for size in self.shape)
        raise ValueError(f"samples of shape {tuple(x.shape[1:])}; this stream takes ({takes})")

    def tell(self, *adapters: Adapter) -> None:
        """Pass on what the guard found about neighbours, where this is asked for."""
        for adapter in adapters:
            if self.guard is not None and adapter.assumes == "told":
                adapter.alike.fill_(self.guard.alike)

    def publish(self, aside: bool) -> None:
        """Let readers go by the adapter as it stands, or by the source model."""
        if aside and self.published.aside:
            return
        self.tell(self.adapter, self.still)
        self.published = Published(self.published.version + 1, {} if aside else copies(self.adapter), aside)

    def count(self, **numbers: int) -> None:
        """Add to `counts`, from whatever thread."""
        with self.tally:
            self.counts.update(numbers)

    def reset(self) -> None:
        """Back to the source model, bit by bit; the guard forgets what it saw."""
        with self.lock:
            self.adapter.reset()
            if self.guard is not None:
                self.guard.clear()
            self.publish(aside=False)

    def state_dict(self) -> dict[str, Any]:
        """What adapting changed, what the guard remembers, and whether readers go by the source model."""
        with self.lock:
            return {"adapter": self.adapter.state_dict(), "guard": {} if self.guard is None else self.guard.state_dict(),
                    "aside": self.published.aside}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over a state; raises ValueError where it belongs to another adapter or other source weights."""
        with self.lock:
            self.adapter.load_state_dict(state["adapter"])
            if self.guard is not None:
                self.guard.load_state_dict(state["guard"])
            self.publish(aside=self.guard is not None and bool(state["aside"]))

    def save(self, path: str | Path) -> None:
        """Write `state_dict` to a file: whole or not at all."""
        AtomicCheckpointIO().save_checkpoint(self.state_dict(), path)

    def load(self, path: str | Path) -> None:
        """Read a file of `save`."""
        self.load_state_dict(AtomicCheckpointIO().load_checkpoint(path))


def copies(adapter: Adapter) -> dict[str, Tensor]:
    """What adapting may change, as it stands."""
    return {name: t.detach().clone() for name, t in adapter.tensors().items()}
