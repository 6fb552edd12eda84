"""Test-time training: a self-supervised task, learned beside the main one, goes on learning at test time.

Idea: one extractor feeds two heads. Train both together; when deployed, take gradient steps on the self-supervised loss
of the very sample that is to be predicted, which moves the shared layers to its domain; then predict with the main one.

Paper: Sun et al., "Test-Time Training with Self-Supervision for Generalization under Distribution Shifts", ICML 2020,
arXiv 1909.13231. `TestTimeTraining` is its joint training (equation 1, rotation), `TTTAdapter` its test-time half:
standard (source weights before every sample) and online (weights carried along the stream).

Deviations: training turns each picture by one random quarter by default where the official script shows all four
(``expand``); the gate on the confidence of "not turned", off in the official runs, is left out. Batch norm, where a
backbone has it, uses its stored statistics at test time, since copies of one picture give no statistics.

Batch: ``x`` (B, C, S, S), ``y`` (B,), ``index`` (B,), with ``epoch`` where present.

Known limits: square pictures with a canonical up; the main head must have been trained together with the other (an
accuracy of the rotation head below .85 on clean data is the first suspect when nothing is gained); the standard variant
gains little on small shifts; online forgets the clean data a little, so `reset` where shifts are known to end.
"""

from __future__ import annotations

import copy
from functools import partial
from typing import Any, Literal, Unpack, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_suite.adapter import Adapter
from ssl_suite.batch import AdaptReport, Backbone, Batch, StepOutput, Tags
from ssl_suite.functional.random import Draw, sample_keys
from ssl_suite.functional.rotation import rotate
from ssl_suite.method import Method, Training
from ssl_suite.views import Views

PRETEXT_STREAM = 100


def fork(backbone: Any, shared_until: int | None) -> tuple[int, nn.ModuleList]:
    """How many stages of a convolutional backbone two heads share, all but the last by default, and a copy of the rest.

    Raises:
        ValueError: the backbone has no such number of stages.
    """
    stages = list(getattr(backbone, "stages", ()))
    shared_until = len(stages) - 1 if shared_until is None else shared_until
    if not 0 < shared_until <= len(stages):
        raise ValueError(f"shared_until={shared_until} must lie between 1 and the {len(stages)} stages of "
                         f"{type(backbone).__name__}; choose a lower number or another convolutional backbone")
    return shared_until, nn.ModuleList(copy.deepcopy(stage) for stage in stages[shared_until:])


class Rotation(nn.Module):
    """The self-supervised head, for quarter turns: a copy of the layers above the shared ones, pooling, a linear layer.

    Args:
        backbone: convolutional, with ``stages``.
        shared_until: number of its stages that both heads share; None is all but the last.
        expand: show every picture in all four turns instead of one drawn at random.
    """

    figure = "ssl_accuracy"

    def __init__(self, backbone: Any, shared_until: int | None, expand: bool) -> None:
        super().__init__()
        self.shared_until, self.stages = fork(backbone, shared_until)
        self.expand = expand
        stages = list(backbone.stages)
        with torch.no_grad():
            maps = nn.Sequential(*copy.deepcopy(stages)).eval()(torch.zeros(1, *backbone.spec.shape))
        self.fc = nn.Linear(maps.shape[1], 4)

    def forward(self, backbone: Any, x: Tensor, draw: Draw, length: Tensor | None) -> tuple[Tensor, Tensor]:
        """Cross-entropy over the four turns, and the share guessed right."""
        if self.expand:
            x, turns = x.repeat_interleave(4, 0), torch.arange(4, device=x.device).repeat(len(x))
        else:
            turns = draw.integers(4)
        h = rotate(x, turns)
        for stage in (*list(backbone.stages)[: self.shared_until], *self.stages):
            h = stage(h)
        logits = self.fc(h.mean((2, 3)))
        return F.cross_entropy(logits.float(), turns), (logits.argmax(1) == turns).float().mean()

    def learning(self, backbone: Any) -> list[nn.Parameter]:
        """What learns at test time: the shared stages and this head."""
        return [p for m in (*list(backbone.stages)[: self.shared_until], self) for p in m.parameters()]


class TestTimeTraining(Method):
    """Joint training of a classifier and a self-supervised head on shared layers.

    Args:
        backbone: convolutional, with ``stages``; group norm is the paper's choice.
        views: kind ``weak`` is used for both tasks.
        num_classes: number of classes.
        shared_until: stages that both heads share; None is all but the last, as in the paper.
        ssl_weight: weight of the self-supervised loss.
        expand: show every picture in all four turns.
        training: optimizer and schedule; see `Method`. The paper: SGD, rate 0.1, momentum 0.9, decay 5e-4.
    """

    __test__ = False
    tags = Tags("Sun et al., ICML 2020, arXiv 1909.13231", "adaptation", modalities=("images",), batch="labeled",
                target="class", views=("weak",))

    def __init__(self, backbone: Backbone, views: Views, *, num_classes: int, shared_until: int | None = None,
                 ssl_weight: float = 1.0, expand: bool = False, **training: Unpack[Training]) -> None:
        super().__init__(backbone, views, **training)
        self.head = nn.Linear(backbone.num_features, num_classes)
        self.pretext: Any = Rotation(backbone, shared_until, expand)
        self.ssl_weight = ssl_weight

    def step(self, batch: Batch) -> StepOutput:
        (x,), length = self.views(batch, "weak"), batch.get("length")
        h = self.backbone(x, length)
        loss_main = F.cross_entropy(self.head(h), batch["y"])
        loss_ssl, figure = self.pretext(self.backbone, x, self.views.draw(batch, PRETEXT_STREAM), length)
        logs = {"loss_main": loss_main.detach(), "loss_ssl": loss_ssl.detach(), self.pretext.figure: figure.detach()}
        return StepOutput(loss_main + self.ssl_weight * loss_ssl, logs, h.detach())

    def logits(self, batch: Batch) -> Tensor:
        return self.head(self(batch))

    def score(self, batch: Batch) -> dict[str, tuple[Tensor, int]]:
        (x,), draw = self.views(batch, "clean"), self.views.draw(batch, PRETEXT_STREAM)
        _, figure = self.pretext(self.backbone, x, draw, batch.get("length"))
        return {**super().score(batch), self.pretext.figure: (figure * len(x), len(x))}


class TTTAdapter(Adapter):
    """Gradient steps on the self-supervised loss of augmented copies of one sample, then its prediction; one by one.

    Args:
        model: what `ssl_suite.deploy.Deployed` makes of a trained `TestTimeTraining`: has ``backbone`` and ``pretext``.
        views: the data's views; ``view`` is drawn for every copy. None makes plain copies.
        view: kind of view.
        online: carry the weights along; False goes back to the source weights before every sample.
        steps: gradient steps per sample; the paper: 10 for standard, 1 for online.
        lr: rate of plain SGD.
        momentum: its momentum; 0 in the paper.
        copies: copies of the sample per step, each with a view and a turn (or mask) of its own.
        seed: seed of what is drawn, together with each sample's index.
        autocast: dtype of forward passes.
    """

    order = "adapt_first"

    def __init__(self, model: nn.Module, *, views: Views | None = None, view: str = "weak", online: bool = True,
                 steps: int = 1, lr: float = 1e-3, momentum: float = 0.0, copies: int = 32, seed: int = 0,
                 autocast: Literal["bfloat16"] | None = None) -> None:
        if not isinstance(getattr(model, "pretext", None), nn.Module):
            raise ValueError("this model has no self-supervised head, so test-time training has nothing to learn from; "
                             "train one with train.py model=ttt, or adapt with model=tent")
        if steps < 1 or copies < 1:
            raise ValueError(f"steps={steps} and copies={copies} must be at least 1")
        super().__init__(model, lambda m: cast(Any, m).pretext.learning(m.backbone),
                         partial(torch.optim.SGD, lr=lr, momentum=momentum), autocast=autocast)
        self.views = copy.deepcopy(views) or Views()
        self.view = view if views is not None else "clean"
        self.online, self.steps, self.copies, self.seed = online, steps, copies, seed

    def predict_and_adapt(self, x: Tensor, length: Tensor | None = None,
                          index: Tensor | None = None) -> tuple[Tensor, AdaptReport]:
        results = []
        with self.lock:
            for i in range(len(x)):
                row = [None if t is None else t[i : i + 1] for t in (length, index)]
                results.append(super().predict_and_adapt(x[i : i + 1], *row))
                if not self.online:
                    self.reset()
        used = [report for _, report in results if report.verdict == "ok"]
        skipped = [report.reason for _, report in results if report.verdict == "skip"]
        loss = sum(report.loss for report in used) / max(len(used), 1)
        report = AdaptReport(loss, len(used), "ok" if used else "skip", skipped[0] if skipped else "")
        return torch.cat([logits for logits, _ in results]), report

    def update(self, x: Tensor, length: Tensor | None, index: Tensor) -> tuple[Tensor, None]:
        x = x.repeat_interleave(self.copies, 0)
        length = None if length is None else length.repeat_interleave(self.copies)
        model: Any = self.model.eval()
        for step in range(self.steps):
            epoch = torch.full_like(index, step)
            view, task = (Draw(sample_keys(self.seed, epoch, index, stream)).copies(self.copies)
                          for stream in (0, PRETEXT_STREAM))
            with torch.autocast(x.device.type, torch.bfloat16, enabled=self.autocast is not None):
                copies = self.views.redraw(x, self.view, view, length)
                loss, _ = model.pretext(model.backbone, copies, task, length)
            self.learn(loss)
        return loss, None
