"""Dash: a bound on the loss of the guesses that falls step by step."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_suite.functional.distributed import mean_over_processes
from ssl_suite.functional.pseudo_labels import sharpen
from ssl_suite.methods.self_training.policies.base import Policy


class Dash(Policy):
    """Dash: guesses whose own loss is small count, and what is small falls as training goes on.

    A guess is believed where the cross-entropy of the weak view with its own pseudo-label is at most
    rho = max(1.0001 * gamma^-k * rho_0, rho_min), k counting up every ``decay_every`` steps after the warm-up. The label
    is the sharpened distribution, and the plain guess once rho has arrived at ``rho_min``. rho_0 is the
    labelled loss at the end of a warm-up on labelled samples alone, in which no guess counts.

    Deviations: rho_0 is a running mean (momentum 0.9) of the labelled training loss; the USB code, whose rule this is,
    takes the loss on the evaluation set, which a run should not see. The warm-up is part of the run and of its schedules.

    Args:
        warmup_steps: steps on labelled samples alone; at least 1.
        decay_every: steps between two values of k; at least 1. 10 epochs of 1024 steps in USB.
        gamma: base of the decay, above 1.
        rho_min: where rho ends, above 0.
        temperature: of the sharpened labels, above 0.

    Raises:
        ValueError: an argument lies outside of its range, or a step brings no labelled rows.
    """

    paper = "Xu et al., ICML 2021, arXiv 2109.00650"
    steps: Tensor
    rho_0: Tensor

    def __init__(self, warmup_steps: int = 2048, decay_every: int = 10240, gamma: float = 1.27, rho_min: float = 0.05,
                 temperature: float = 0.5) -> None:
        super().__init__()
        for name, value, least in (("warmup_steps", warmup_steps, 0), ("decay_every", decay_every, 0), ("gamma", gamma, 1),
                                   ("rho_min", rho_min, 0), ("temperature", temperature, 0)):
            if value <= least:
                raise ValueError(f"policy.{name} must be above {least}, got {value}")
        self.warmup_steps, self.decay_every, self.gamma = warmup_steps, decay_every, gamma
        self.rho_min, self.temperature = rho_min, temperature
        self.register_buffer("steps", torch.tensor(0))
        self.register_buffer("rho_0", torch.tensor(0.0))

    @torch.no_grad()
    def forward(self, probs: Tensor, index: Tensor | None = None, labeled_probs: Tensor | None = None,
                labels: Tensor | None = None) -> tuple[Tensor, Tensor]:
        if labeled_probs is None or labels is None:
            raise ValueError("Dash starts from the labelled loss: give the policy labeled_probs and labels")
        loss = F.nll_loss(labeled_probs.clamp(min=1e-12).log(), labels)
        warm = self.steps < self.warmup_steps
        share = torch.maximum(1.0 / (self.steps + 1.0), torch.full_like(self.rho_0, 0.1)) * warm
        self.rho_0.lerp_(mean_over_processes(loss).to(self.rho_0.dtype), share)
        rho = self.rho()
        self.steps += 1
        hard = F.one_hot(probs.argmax(1), probs.shape[1]).to(probs.dtype)
        target = torch.where(rho <= self.rho_min, hard, sharpen(probs, self.temperature))
        own_loss = -(target * probs.clamp(min=1e-12).log()).sum(1)
        return target, ((own_loss <= rho) & ~warm).to(probs.dtype)

    def rho(self) -> Tensor:
        """The bound on the loss at this step."""
        k = (self.steps - self.warmup_steps).clamp(min=0) // self.decay_every
        return (1.0001 * self.gamma ** -k.to(self.rho_0.dtype) * self.rho_0).clamp(min=self.rho_min)
