"""Policy adaptation during deployment: a policy's encoder goes on learning from what its own actions bring about.

Idea: encoder and policy are trained together with a self-supervised head on the encoder: which action led from one
observation to the next (inverse dynamics). When deployed there is no reward, but every step gives such a transition: take a
gradient step on it, then act with the updated encoder. The policy's own layers stay as they are.

Paper: Hansen et al., "Self-Supervised Policy Adaptation during Deployment", ICLR 2021, arXiv 2007.04309.
`PolicyAdaptation` is the training half, `PADAdapter` the deployed one: Adam, one step per transition on 32 copies of it, both
of its observations augmented independently.

Deviations: the policy clones an expert's actions where the paper trains it with SAC, and both losses share every optimizer
step; views of equal size (shifts) stand for crops of a larger rendering; weights are carried over episodes unless `reset` is
called, while the paper starts each episode from the trained ones. ``source="replay"`` learns from the last transitions
instead of the newest alone, transitions of hardly any action are not learned from, and a shift that the head cannot read is
refused; the paper has none of the three.

Batch: ``x`` (B, C, H, W), ``next`` likewise, ``action`` (B, A) executed, ``y`` (B, A) the expert's, in [-1, 1]; ``index``
(B,), with ``epoch`` where present.

Known limits: actions are continuous; one environment at a time; nothing is gained through layers that policy and head do not
share; it can destroy a policy that coped with a shift, and too high a rate does so without any shift.
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
from ssl_suite.method import Method, Training
from ssl_suite.methods.adaptation.ttt import PRETEXT_STREAM, rotate
from ssl_suite.nn.heads import mlp
from ssl_suite.views import Views
from ssl_suite.views.plan import to_float

Shared = int | Literal["all", "none"]
NEXT_STREAM = 1
PICK_STREAM = 101


def fork(backbone: Any, shared: Shared) -> Any:
    """A backbone that has its lower stages in common with another, and copies of all that lies above.

    Args:
        backbone: the other; with ``stages`` where a number is given.
        shared: number of stages in common; ``all`` is the backbone itself, ``none`` a copy.

    Raises:
        ValueError: a number outside of the backbone's stages.
    """
    if shared == "all":
        return backbone
    stages = list(getattr(backbone, "stages", ()))
    if shared != "none" and not (isinstance(shared, int) and 0 < shared <= len(stages)):
        raise ValueError(f"shared={shared!r} must be 'all', 'none' or lie between 1 and the {len(stages)} stages of "
                         f"{type(backbone).__name__}")
    common = [m for stage in stages[: 0 if shared == "none" else int(shared)] for m in stage.modules()]
    return copy.deepcopy(backbone, {id(m): m for m in common})


class Pretext(nn.Module):
    """The self-supervised branch: an encoder forked from the policy's, and a head.

    Args:
        backbone: the policy's encoder.
        shared: what of it is shared; see `fork`.
        task: ``inverse`` guesses the action between two observations, by squared error; ``rotation`` the quarter turn of the
            second one, by cross-entropy.
        hidden: width of the head's two hidden layers.
    """

    typical: Tensor

    def __init__(self, backbone: Any, shared: Shared, task: Literal["inverse", "rotation"], hidden: int) -> None:
        super().__init__()
        if task not in ("inverse", "rotation"):
            raise ValueError(f"task={task!r} is not one of 'inverse', 'rotation'")
        self.task, self.encoder, width = task, fork(backbone, shared), backbone.num_features
        self.head = (mlp(2 * width, hidden, backbone.spec.actions, layers=3, norm=False) if task == "inverse"
                     else mlp(width, hidden, 4, layers=3, norm=False))
        self.register_buffer("typical", torch.tensor(float("nan")))  # moving average of the loss in training

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
        shared: what both heads share: a number of stages, ``all`` or ``none``.
        task: ``inverse`` (dynamics) or ``rotation``.
        hidden: width of the two hidden layers of either head; the paper: 1024.
        ssl_weight: weight of the self-supervised loss.
        training: optimizer and schedule; see `Method`. The paper: Adam, rate 1e-3.

    Raises:
        ValueError: data without actions, or an option out of range.
    """

    tags = Tags("Hansen et al., ICLR 2021, arXiv 2007.04309", "adaptation", modalities=("images",), batch="labeled",
                target="action", views=("weak",))

    def __init__(self, backbone: Backbone, views: Views, *, shared: Shared = "all",
                 task: Literal["inverse", "rotation"] = "inverse", hidden: int = 1024, ssl_weight: float = 1.0,
                 **training: Unpack[Training]) -> None:
        super().__init__(backbone, views, **training)
        if not backbone.spec.actions:
            raise ValueError("these data have no actions; take data=point_reach")
        self.policy = mlp(backbone.num_features, hidden, backbone.spec.actions, layers=3, norm=False)
        self.pretext = Pretext(backbone, shared, task, hidden)
        self.ssl_weight = ssl_weight

    def transition(self, batch: Batch, kind: str) -> tuple[Tensor, Tensor]:
        """Views of one kind of both observations, each with draws of its own."""
        following = self.views.apply_kind(to_float(batch["next"]), kind, self.views.draw(batch, NEXT_STREAM))
        return self.views(batch, kind)[0], following

    def step(self, batch: Batch) -> StepOutput:
        x, following = self.transition(batch, "weak")
        h = self.backbone(x)
        loss_policy = F.mse_loss(self.policy(h).tanh().float(), batch["y"])
        loss_ssl = self.pretext(x, following, batch["action"], self.views.draw(batch, PRETEXT_STREAM))
        if self.training:
            seen = self.pretext.typical
            seen.copy_(torch.where(seen.isnan(), loss_ssl.detach(), seen.lerp(loss_ssl.detach(), 0.01)))
        logs = {"loss_policy": loss_policy.detach(), "loss_ssl": loss_ssl.detach()}
        return StepOutput(loss_policy + self.ssl_weight * loss_ssl, logs, h.detach())

    def logits(self, batch: Batch) -> Tensor:
        """Actions (B, A) in [-1, 1] for clean observations."""
        return self.policy(self(batch)).tanh()

    def score(self, batch: Batch) -> dict[str, tuple[Tensor, int]]:
        """Squared error of the action on clean observations, and the loss of the head on its views."""
        n = len(batch["y"])
        loss_ssl = self.pretext(*self.transition(batch, "weak"), batch["action"], self.views.draw(batch, PRETEXT_STREAM))
        return {"mse_policy": (F.mse_loss(self.logits(batch), batch["y"]) * n, n), "loss_ssl": (loss_ssl * n, n)}


class PADAdapter(Adapter):
    """Acts on one observation after the other and learns from what the actions brought about.

    `predict_and_adapt` takes the newest observation (1, C, H, W), learns from the transition that led to it, and returns
    the action (1, A) that is to be executed. `start` begins an episode.

    Args:
        model: what `ssl_suite.deploy.Deployed` makes of a trained `PolicyAdaptation`.
        views: the data's views; ``view`` is drawn for either observation of every copy. None makes plain copies.
        view: kind of view.
        replay: how many of the newest transitions the copies are drawn from; the paper: 1.
        copies: transitions in a gradient step.
        lr: rate of Adam; the paper: 1e-3.
        min_action: norm below which an action is too small to be guessed: its transition is left out.
        trial: losses looked at, without learning, before the first step; 0 learns at once, as the paper does.
        tolerance: how many times the value in training the mean of these losses may be; beyond, nothing is ever learned.
        seed: seed of what is drawn, together with the number of observations seen.
        autocast: dtype of forward passes.

    Raises:
        ValueError: a model without the head, a number out of range, or more than one observation at a time.
    """

    order = "adapt_first"
    before: Tensor
    after: Tensor
    actions: Tensor
    stored: Tensor
    losses: Tensor
    tried: Tensor
    last: Tensor
    last_action: Tensor
    running: Tensor

    def __init__(self, model: nn.Module, *, views: Views | None = None, view: str = "weak", replay: int = 1, copies: int = 32,
                 lr: float = 5e-5, min_action: float = 0.1, trial: int = 20, tolerance: float = 20.0, seed: int = 0,
                 autocast: Literal["bfloat16"] | None = None) -> None:
        if not isinstance(getattr(model, "pretext", None), Pretext):
            raise ValueError("this model has no head that guesses actions, so there is nothing to learn from; train one with "
                             "train.py model=pad")
        if replay < 1 or copies < 1 or trial < 0:
            raise ValueError(f"replay={replay} and copies={copies} must be at least 1, trial={trial} at least 0")
        super().__init__(model, lambda m: list(cast(Any, m).pretext.parameters()), partial(torch.optim.Adam, lr=lr),
                         autocast=autocast)
        self.views, self.view = copy.deepcopy(views) or Views(), view if views is not None else "clean"
        self.copies, self.min_action, self.tolerance, self.seed = copies, min_action, tolerance, seed
        spec, at, self.reason = cast(Any, model).backbone.spec, self.learning[0].device, ""
        for name, shape in (("before", (replay, *spec.shape)), ("after", (replay, *spec.shape)), ("losses", (trial,)),
                            ("actions", (replay, spec.actions)), ("last", (1, *spec.shape)), ("last_action", (1, spec.actions))):
            self.register_buffer(name, torch.zeros(shape, device=at))
        for name in ("stored", "tried", "running"):
            self.register_buffer(name, torch.zeros((), dtype=torch.int64, device=at))

    def start(self) -> None:
        """Begin an episode: the next observation does not follow from the last one."""
        with self.lock:
            self.running.zero_()

    def predict_and_adapt(self, x: Tensor, length: Tensor | None = None,
                          index: Tensor | None = None) -> tuple[Tensor, AdaptReport]:
        if len(x) != 1:
            raise ValueError(f"PAD acts on one observation at a time, got {len(x)}; build an adapter per environment")
        with self.lock:
            action, report = super().predict_and_adapt(x, length, index)
            if report.verdict == "skip":  # undone, and the observation with it
                self.start()
            elif not report.n_used:
                report = AdaptReport(report.loss, 0, "skip", self.reason)
            return action, report

    def update(self, x: Tensor, length: Tensor | None, index: Tensor) -> tuple[Tensor, Tensor]:
        self.reason, loss, trial = self.hindrance(), x.new_zeros(()), len(self.losses)
        if not self.reason:
            self.remember(x)
            loss = self.pretext_loss(index)
            if int(self.tried) < trial:
                self.losses[self.tried] = loss.detach()
                self.tried += 1
                self.reason = f"loss {int(self.tried)} of {trial} before learning"
            else:
                self.learn(loss)
        self.used, action = torch.tensor(int(not self.reason)), self.predict(x)
        for kept, new in ((self.last, x), (self.last_action, action), (self.running, torch.ones_like(self.running))):
            kept.copy_(new)
        return loss, action

    def hindrance(self) -> str:
        """Why nothing can be learned from the transition at hand; empty where it can."""
        typical, trial = cast(Any, self.model).pretext.typical, self.losses.mean()
        if not self.running:
            return "first observation of an episode"
        if self.last_action.norm() < self.min_action:
            return f"action smaller than {self.min_action}"
        if int(self.tried) == len(self.losses) and trial > self.tolerance * typical:
            return (f"shift out of range: the first {len(self.losses)} losses average {float(trial):.3g}, over "
                    f"{self.tolerance:g} times the {float(typical):.3g} of training")
        return ""

    def remember(self, x: Tensor) -> None:
        """Keep the transition from the last observation to this one, in place of the oldest."""
        slot = self.stored % len(self.actions)
        for bank, new in ((self.before, self.last), (self.after, x), (self.actions, self.last_action)):
            bank[slot] = new[0]
        self.stored += 1

    def pretext_loss(self, index: Tensor) -> Tensor:
        """Loss of copies drawn from the transitions that are kept, all four draws independent."""
        model: Any = self.model.eval()
        view, next_view, task, pick = (Draw(sample_keys(self.seed, torch.zeros_like(index), index, stream)).copies(self.copies)
                                       for stream in (0, NEXT_STREAM, PRETEXT_STREAM, PICK_STREAM))
        rows = pick.integers(min(int(self.stored), len(self.actions)))
        with torch.autocast(index.device.type, torch.bfloat16, enabled=self.autocast is not None):
            x = self.views.redraw(self.before[rows], self.view, view)
            following = self.views.redraw(self.after[rows], self.view, next_view)
            return model.pretext(x, following, self.actions[rows], task)
