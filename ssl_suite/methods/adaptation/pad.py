"""Policy adaptation during deployment: a policy's encoder goes on learning from what its own actions bring about.

Idea: train a policy together with a head on its encoder that guesses which action led from one observation to the next. When
deployed there is no reward, but every step gives such a transition: take a gradient step on it, which moves encoder and head
but not the policy's own layers, then act with the updated encoder.

Paper: Hansen et al., "Self-Supervised Policy Adaptation during Deployment", ICLR 2021, arXiv 2007.04309. `PADAdapter`
takes one Adam step per transition on 32 copies of it, each observation augmented by itself. Deviations: the policy clones an
expert where the paper trains it with SAC; both losses share every step; weights are carried over episodes unless `reset` is
called. Not in the paper: ``replay`` above 1, ``stages``, ``min_action``, ``trial`` and `executed`.

Batch: ``x``, ``next`` (B, C, H, W), ``action`` (B, A) executed, ``y`` (B, A) the expert's, in [-1, 1]; ``index`` (B,), ``epoch``.

Known limits: continuous actions; one environment at a time; no gain through layers that policy and head do not share. Whoever
acts should explore, most of all at first: else the head learns to guess an action from the first observation alone. And where
all layers learn, the upper ones and the head can agree on features whose constant error sets the policy off; see docs/results.md.
"""

from __future__ import annotations

import copy
from functools import partial
from typing import Any, Literal, Unpack, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_suite.adapter import Adapter, AdaptReport
from ssl_suite.batch import Backbone, Batch, StepOutput, Tags
from ssl_suite.functional.random import Draw, sample_keys
from ssl_suite.functional.rotation import rotate
from ssl_suite.method import Method, Training
from ssl_suite.nn.fork import Shared, fork, lower
from ssl_suite.nn.heads import mlp
from ssl_suite.nn.replay import Replay
from ssl_suite.nn.trial import Trial
from ssl_suite.views import Views, to_float

Task = Literal["inverse", "rotation"]
NEXT_STREAM, PRETEXT_STREAM, PICK_STREAM = 1, 100, 101


class Pretext(nn.Module):
    """The self-supervised branch: an encoder forked from the policy's, see `fork`, and a head of two hidden layers.

    ``inverse`` guesses the action between two observations (squared error), ``rotation`` the quarter turn of the second one
    (cross-entropy). ``typical`` is a moving average of the loss in training.
    """

    typical: Tensor

    def __init__(self, backbone: Any, shared: Shared, task: Task, hidden: int) -> None:
        super().__init__()
        if task not in ("inverse", "rotation"):
            raise ValueError(f"task={task!r} is not one of 'inverse', 'rotation'")
        self.task, self.encoder, width = task, fork(backbone, shared), backbone.num_features
        sizes = (2 * width, hidden, backbone.spec.actions) if task == "inverse" else (width, hidden, 4)
        self.head = mlp(*sizes, layers=3, norm=False)
        self.register_buffer("typical", torch.tensor(torch.nan))

    def forward(self, x: Tensor, following: Tensor, action: Tensor, draw: Draw) -> Tensor:
        """Mean loss of transitions: views of observations (B, C, H, W) and the action (B, A) between them."""
        if self.task == "rotation":
            turns = draw.integers(4)
            return F.cross_entropy(self.head(self.encoder(rotate(following, turns))).float(), turns)
        h = self.encoder(torch.cat([x, following])).chunk(2)
        return F.mse_loss(self.head(torch.cat(h, dim=1)).float(), action)


class PolicyAdaptation(Method):
    """Behaviour cloning and a self-supervised task on shared layers.

    Args:
        backbone: encoder, built from a spec with ``actions``.
        views: kind ``weak`` is drawn for every observation.
        shared: stages that both heads share, a number, ``all`` or ``none``; the paper: 8 of 11 convolutions.
        task: ``inverse`` (dynamics) or ``rotation``.
        hidden, ssl_weight: width of the two hidden layers of either head, the paper 1024; weight of the self-supervised loss.
        training: optimizer and schedule; see `Method`. The paper: Adam, rate 1e-3.
    """

    tags = Tags("Hansen et al., ICLR 2021, arXiv 2007.04309", "adaptation", modalities=("images",), batch="labeled",
                target="action")

    def __init__(self, backbone: Backbone, views: Views, *, shared: Shared = "all", task: Task = "inverse",
                 hidden: int = 1024, ssl_weight: float = 1.0, **training: Unpack[Training]) -> None:
        super().__init__(backbone, views, **training)
        self.policy = mlp(backbone.num_features, hidden, backbone.spec.actions, layers=3, norm=False)
        self.pretext, self.ssl_weight = Pretext(backbone, shared, task, hidden), ssl_weight

    def losses(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Loss of the policy and of the pretext task on weak views, and representations (B, D)."""
        (x,), draw = self.views(batch, "weak"), self.views.draw(batch, NEXT_STREAM)
        following, h = self.views.apply_kind(to_float(batch["next"]), "weak", draw), self.backbone(x)
        loss_policy = F.mse_loss(self.policy(h).tanh().float(), batch["y"])
        return loss_policy, self.pretext(x, following, batch["action"], self.views.draw(batch, PRETEXT_STREAM)), h

    def step(self, batch: Batch) -> StepOutput:
        loss_policy, loss_ssl, h = self.losses(batch)
        if self.training:
            new, typical = loss_ssl.detach().float(), self.pretext.typical
            typical.copy_(torch.where(typical.isnan(), new, typical.lerp(new, 0.01)))
        logs = {"loss_policy": loss_policy.detach(), "loss_ssl": loss_ssl.detach()}
        return StepOutput(loss_policy + self.ssl_weight * loss_ssl, logs, h.detach())

    def logits(self, batch: Batch) -> Tensor:
        """Actions (B, A) in [-1, 1] for clean observations."""
        return self.policy(self(batch)).tanh()

    def score(self, batch: Batch) -> dict[str, tuple[Tensor, int]]:
        *losses, h = self.losses(batch)
        return {name: (loss * len(h), len(h)) for name, loss in zip(("loss_policy", "loss_ssl"), losses, strict=True)}


class PADAdapter(Adapter):
    """Acts on one observation after the other and learns from what the actions brought about.

    `start` begins an episode; `predict_and_adapt` takes the newest observation (1, C, H, W), learns from the transition that
    led to it, and returns the action (1, A) to execute. Where another one was, `executed` tells so before the next observation.

    Args:
        model: what `ssl_suite.deploy.Deployed` makes of a trained `PolicyAdaptation`.
        views, view: the data's views and the kind drawn for either observation of every copy. None makes plain copies.
        replay, copies, lr: newest transitions kept, the paper 1; drawn for a gradient step; rate of Adam, the paper 1e-3.
        stages: of the encoder, those that learn beside the head, as `lower` counts; the paper: ``all``.
        min_action: norm below which an action is too small to be guessed: its transition is left out.
        trial: losses to see before the first step; 0 learns at once, as the paper does.
        tolerance: how many times the loss in training their mean may be; beyond, nothing is learned until `reset`.
        seed: seed of what is drawn, together with the number of observations seen.
        autocast: dtype of forward passes.
    """

    order = "adapt_first"

    def __init__(self, model: nn.Module, *, views: Views | None = None, view: str = "weak", replay: int = 1, copies: int = 32,
                 lr: float = 1e-3, stages: Shared = "all", min_action: float = 0.1, trial: int = 20, tolerance: float = 20.0,
                 seed: int = 0, autocast: Literal["bfloat16"] | None = None) -> None:
        if not isinstance(getattr(model, "pretext", None), Pretext):
            raise ValueError("this model has no head of PAD, so there is nothing to learn from; train one: train.py model=pad")
        if copies < 1:
            raise ValueError(f"copies={copies} must be at least 1; the paper's are 32")
        super().__init__(model, lambda m: [p for part in (*lower(cast(Any, m).pretext.encoder, stages), cast(Any, m).pretext.head)
                                           for p in part.parameters()], partial(torch.optim.Adam, lr=lr), autocast=autocast)
        self.views, self.view = copy.deepcopy(views) or Views(), view if views is not None else "clean"
        self.copies, self.min_action, self.seed, self.reason = copies, min_action, seed, ""
        spec, at = cast(Any, model).backbone.spec, self.learning[0].device
        self.replay, self.trial = Replay(replay, spec.shape, spec.actions).to(at), Trial(trial, tolerance).to(at)

    def start(self) -> None:
        """Begin an episode: the next observation does not follow from the last one."""
        with self.lock:
            self.replay.running.zero_()

    def executed(self, action: Tensor) -> None:
        """What was done, (1, A), in place of the action last returned: with exploration, or cut by a limit."""
        with self.lock:
            self.replay.last_action.copy_(action)

    def predict_and_adapt(self, x: Tensor, length: Tensor | None = None,
                          index: Tensor | None = None) -> tuple[Tensor, AdaptReport]:
        if len(x) != 1:
            raise ValueError(f"PAD acts on one observation at a time, got {len(x)}; build an adapter per environment")
        with self.lock:
            action, report = super().predict_and_adapt(x, length, index)
            if report.verdict == "skip":  # undone, and the observation with it
                self.start()
            elif self.reason:
                report = AdaptReport(report.loss, 0, "skip", self.reason)
            return action, report

    def update(self, x: Tensor, length: Tensor | None, index: Tensor) -> tuple[Tensor, Tensor]:
        self.reason, loss = self.hindrance(), x.new_zeros(())
        if not self.reason:
            self.replay.end(x)
            loss = self.pretext_loss(index)
            if self.trial.missing:
                self.trial.add(loss)
                self.reason = f"on trial, {self.trial.missing} more losses to see before learning"
            else:
                self.learn(loss)
        self.replay.begin(x, action := self.predict(x))
        return loss, action

    def hindrance(self) -> str:
        """Why nothing can be learned from what led to the newest observation; empty where it can."""
        if not self.replay.running:
            return "first observation of an episode"
        if self.replay.last_action.norm() < self.min_action:
            return f"action smaller than {self.min_action}"
        return self.trial.refusal(cast(Any, self.model).pretext.typical)

    def pretext_loss(self, index: Tensor) -> Tensor:
        """Loss of copies drawn from the transitions that are kept."""
        view, next_view, task, pick = (Draw(sample_keys(self.seed, torch.zeros_like(index), index, stream)).copies(self.copies)
                                       for stream in (0, NEXT_STREAM, PRETEXT_STREAM, PICK_STREAM))
        x, action, following = self.replay.rows(pick)
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self.autocast is not None):
            x, following = self.views.redraw(x, self.view, view), self.views.redraw(following, self.view, next_view)
            return cast(Any, self.model).eval().pretext(x, following, action, task)
