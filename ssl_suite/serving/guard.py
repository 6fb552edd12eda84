"""The collapse guard: label-free signs that an adapter does harm, and what is done about each of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor

from ssl_suite.adapter import Adapter
from ssl_suite.functional.adaptation import dependence, effective_classes, entropy
from ssl_suite.nn.norm import batch_norms

BLOCK = 32
"""Consecutive samples whose mean prediction is compared with that of the others."""
OFTEN, SELDOM = 3, 8
"""Blocks between two changes of the corruption that are allowed for."""
CLEARER = 1.5
"""How many times the dependence an adapter that relies on alike neighbours asks for."""


Verdict = Literal["ok", "rollback", "reset", "disable"]
REMEMBERED = ("seen", "sure", "pairs", "alike", "disabled", "resets", "updates", "good", "probe_accuracy")


class CollapseGuard:
    """Watches the predictions of an adapter beside those it would make had it learned nothing, and steps in where it does harm.

    Three signs, none of which needs a label:

    - **Neighbours that are alike.** Where the predicted class depends on when a sample came (`dependence`, measured on the
      source model's predictions), statistics of a batch are those of a class. A corruption that changes every hundred samples
      may explain some of it, unless they make the predictions less sure than the source model's. An adapter that normalises by
      them, or ``assumes`` a shuffled stream, is set aside there, and one that assumes a correlated stream is used only there:
      the source model predicts instead, and nothing is learned, until the sign is gone. One that wants it is ``told``.
    - **Fewer classes, or less sure.** Predictions that spread over fewer classes than without learning, on the same samples,
      are on the way to collapse, and less sure ones over no more classes fit the stream worse: back to the source, with a third
      of the learning rate; after the last time nothing is learned any more.
    - **Far from home.** Learned tensors further from the source's than a share of their norm: back to the last good state,
      or to the source where there is none.

    An optional fourth, ``probe``, are stored samples of the source's kind with labels: where the adapter's accuracy on them
    has fallen, it goes back to the last good state.

    Cost: a forward pass of the source model for every batch, and one of the adapter without learning for every other one.

    Args:
        window: samples the first two signs look back over.
        max_dependence: nats of `dependence` above which neighbours count as alike, half as many again for an adapter that
            relies on it; half of it ends the state.
        min_spread: effective classes of the predictions as a share of those without learning.
        max_unsure: entropy of the predictions as a multiple of that without learning.
        max_drift: distance from the source as a share of its norm.
        max_resets: after so many collapses nothing is learned any more.
        probe: samples (n, ...) and their classes (n,), at most a few hundred.
        probe_every: updates from one look at them, and from one good state kept, to the next.
        max_drop: loss of accuracy on them, as a share, that is let pass.

    Raises:
        ValueError: a number out of range.
    """

    def __init__(self, *, window: int = 512, max_dependence: float = 0.1, min_spread: float = 0.9, max_unsure: float = 1.2,
                 max_drift: float = 0.5, max_resets: int = 4, probe: tuple[Tensor, Tensor] | None = None,
                 probe_every: int = 100, max_drop: float = 0.05) -> None:
        if window < 4 * BLOCK or max_resets < 1 or probe_every < 1:
            raise ValueError(f"guard.window={window} must be at least {4 * BLOCK}, guard.max_resets={max_resets} and "
                             f"guard.probe_every={probe_every} at least 1")
        for key, value in {"max_dependence": max_dependence, "min_spread": min_spread, "max_drift": max_drift,
                           "max_drop": max_drop}.items():
            if value < 0.0:
                raise ValueError(f"guard.{key}={value} must not be negative")
        if max_unsure < 1.0:
            raise ValueError(f"guard.max_unsure={max_unsure} must be at least 1")
        self.window, self.max_dependence, self.min_spread = window, max_dependence, min_spread
        self.max_unsure, self.max_drift = max_unsure, max_drift
        self.max_resets, self.probe, self.probe_every, self.max_drop = max_resets, probe, probe_every, max_drop
        self.clear()

    def clear(self) -> None:
        """Forget everything seen: as after `Adapter.reset`."""
        self.seen, self.sure, self.pairs = torch.empty(0), torch.empty(0), torch.empty(0)
        self.alike, self.disabled, self.resets, self.updates = False, False, 0, 0
        self.good: dict[str, Any] = {}
        self.probe_accuracy = 0.0

    def objects(self, adapter: Adapter, source: Tensor, unlearned: Callable[[], Tensor]) -> str:
        """Why a batch is to be predicted by the source model; empty where the adapter may have it.

        Args:
            adapter: whose turn it is.
            source: logits of the source model, (B, K).
            unlearned: gives those of the source weights with the adapter's statistics.
        """
        self.seen = torch.cat([self.seen.to(source), source.softmax(1)])[-self.window :]
        by_batch = adapter.stats == "batch" and bool(batch_norms(adapter.model))
        assumes = "shuffled" if by_batch and adapter.assumes != "correlated" else adapter.assumes
        if assumes is None:
            return ""
        if by_batch and (self.alike or self.updates % 2 == 0):  # the batches that `judge` compares, and all that are set aside
            both = torch.stack([entropy(unlearned()), entropy(source)], 1)
            self.sure = torch.cat([self.sure.to(both), both])[-self.window // 2 :]
        unsure = by_batch and len(self.sure) >= 4 * BLOCK and bool(self.sure[:, 0].sum() > self.sure[:, 1].sum())
        found = dependence(self.seen, BLOCK, SELDOM if unsure else OFTEN)
        bar = self.max_dependence * (CLEARER if assumes == "correlated" else 1.0)
        self.alike = found > bar * (0.5 if self.alike else 1.0)
        if assumes == "told" or self.alike == (assumes == "correlated"):
            return ""
        return (f"neighbours in the stream are {'alike' if self.alike else 'not alike'} ({found:.2f} nats), and "
                f"{type(adapter).__name__} is for {assumes} streams")

    def judge(self, adapter: Adapter, adapted: Tensor, still: Callable[[], Tensor]) -> tuple[Verdict, str]:
        """Verdict on an update, and its reason; what the verdict says is done.

        Args:
            adapter: as it stands after the update.
            adapted: its logits, (B, K).
            still: gives those it had made without learning.
        """
        self.updates += 1
        if not adapter.learning:
            return "ok", ""
        if self.updates % 2:
            both = torch.stack([adapted.softmax(1), still().softmax(1)], 1)
            self.pairs = torch.cat([self.pairs.to(both), both])[-self.window :]
            if reason := self.collapsed():
                self.resets += 1
                self.pairs, self.disabled = self.pairs[:0], self.resets >= self.max_resets
                self.go_back(adapter, {})
                return ("disable" if self.disabled else "reset"), reason
        if reason := self.strayed(adapter):
            good, self.good = self.good, {}
            self.go_back(adapter, good)
            return ("rollback" if good else "reset"), reason
        if self.updates % self.probe_every == 0:
            self.good = adapter.state_dict()
        return "ok", ""

    def collapsed(self) -> str:
        """The signs of fewer classes and of doubt, or nothing."""
        if len(self.pairs) < 4 * BLOCK:
            return ""
        now, before = (float(effective_classes(self.pairs[:, i])) for i in (0, 1))
        if now < self.min_spread * before:
            return f"predictions spread over {now:.1f} classes, {before:.1f} without learning"
        if now * self.min_spread > before:  # learning found classes that were missing: no wonder
            return ""
        now, before = torch.special.entr(self.pairs).sum(2).mean(0).tolist()
        return f"{now:.2f} nats of entropy in predictions, {before:.2f} without learning" if now > self.max_unsure * before else ""

    def strayed(self, adapter: Adapter) -> str:
        """The signs of a long way from home and of forgetting, or nothing."""
        pairs = [(p, adapter.origin["tensors"][name]) for name, p in adapter.named_parameters() if p.requires_grad]
        if pairs:
            moved = torch.stack([torch.dist(p.detach(), home) for p, home in pairs]).norm()
            share = float(moved / torch.stack([home.norm() for _, home in pairs]).norm())
            if share > self.max_drift:
                return f"learned tensors are {share:.2f} of their norm away from the source's"
        if self.probe is None or self.updates % self.probe_every:
            return ""
        x, y = self.probe
        accuracy = float((adapter.predict(x).argmax(1) == y).float().mean())
        self.probe_accuracy = self.probe_accuracy or accuracy  # the first look's
        drop = self.probe_accuracy - accuracy
        return f"accuracy on the probe samples fell by {100 * drop:.1f} points" if drop > self.max_drop else ""

    def go_back(self, adapter: Adapter, state: dict[str, Any]) -> None:
        """To a state, or to the source; what was done since is not repeated as fast: a third of the learning rate."""
        rates = [group["lr"] / 3.0 for group in adapter.optimizer.param_groups]
        if state:
            adapter.load_state_dict(state)
        else:
            adapter.reset()
        for group, rate in zip(adapter.optimizer.param_groups, rates, strict=True):
            group["lr"] = rate

    def state_dict(self) -> dict[str, Any]:
        """What is remembered, in plain containers; no samples."""
        return {name: getattr(self, name) for name in REMEMBERED}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what another guard of the same settings remembered."""
        for name in REMEMBERED:
            setattr(self, name, state[name])
