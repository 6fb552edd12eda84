"""Self-distillation: a network learns from a finished copy of itself, and may be told to distrust the given labels.

Idea: train a network, start it afresh, and let it learn from xi * teacher + (1 - xi) * label. With xi <= 1 this is a
born-again network. With many wrong labels the best xi lies above 1: the label then counts against itself.

Paper: Das and Sanghavi, "Understanding Self-Distillation in the Presence of Label Noise", ICML 2023, arXiv 2301.13304
(the xi-weighted loss); Furlanello et al., "Born-Again Neural Networks", ICML 2018, arXiv 1805.04770 (generations). For
the ridge and logistic experiments see ``functional/distillation.py`` and ``scripts/self_distillation_digits.py``.

Deviations: all generations are one run of equal parts; at each border the student becomes the teacher and starts
afresh, and optimizer and schedule start again. ``clamp`` keeps targets from turning negative (above xi = 1 the loss
has no lower bound without it); the paper relies on weight decay alone, which ``clamp=False`` gives. ``temperature``
softens the teacher only, so that one cross-entropy serves both parts. Generations are not averaged into an ensemble.
``restart="new"`` puts the entries of each first weight tensor in another order, which for independently drawn entries
is a new draw by the same rule, whatever the network; a tensor drawn as one piece (orthogonal) would lose its structure.

Batch: ``x`` (B, ...), ``y`` (B,), ``index`` (B,), with ``epoch`` and ``length`` (B,) where present.

Known limits: a teacher that fits its labels perfectly gives them back and nothing is gained: keep it regularised. xi
and weight decay interact. The run holds three copies of the network. Corrupted labels must be fixed before the run,
not per epoch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Self, Unpack

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_suite.batch import Backbone, Batch, StepOutput, Tags
from ssl_suite.functional.distillation import self_distillation_target
from ssl_suite.functional.ema import make_teacher
from ssl_suite.method import Method, Training
from ssl_suite.nn.sharding import local
from ssl_suite.optim.schedules import Schedule
from ssl_suite.views import Views


class PerGeneration:
    """A schedule that starts again in each of several equal parts of the run.

    Args:
        schedule: what happens within one part.
        parts: number of parts.
    """

    def __init__(self, schedule: Schedule, parts: int) -> None:
        self.schedule, self.parts = schedule, parts

    def part(self, step: int, total: int) -> int:
        """Number of the part that a step belongs to, from 0."""
        return min(step // -(-total // self.parts), self.parts - 1)

    def __call__(self, step: int, total: int) -> float:
        size = -(-total // self.parts)
        return self.schedule(step - self.part(step, total) * size, size)


@torch.no_grad()
def reorder(module: nn.Module, generator: torch.Generator) -> None:
    """Put the entries of each trainable tensor in another order: new weights by whatever rule drew the old ones.

    Of a sharded tensor each process reorders its own part.
    """
    for p in module.parameters():
        if p.requires_grad:
            part = local(p)
            order = torch.randperm(part.numel(), generator=generator).to(part.device)
            part.copy_(part.flatten()[order].view_as(part))


class SelfDistillation(Method):
    """Generations of one network, each learning from the one before and from the labels.

    Args:
        backbone: any backbone.
        views: kind ``weak`` is used; teacher and student see the same view.
        num_classes: number of classes.
        xi: weight of the teacher; the labels get 1 - xi. 0 is plain training, 1 ignores the labels, above 1
            distrusts them. Several are those of one generation after the other, as in repeated self-distillation
            (Pareek et al., NeurIPS 2024, arXiv 2407.04600; in closed form: `ssl_suite.estimators`).
        temperature: divides the teacher's logits; above 0.
        generations: networks trained one after the other, the first on labels alone; at least 1.
        clamp: no negative targets.
        restart: ``new`` draws new weights for each generation; ``same`` goes back to those the run started from,
            which a pre-trained backbone needs.
        training: optimizer and schedule; see `Method`.

    Raises:
        ValueError: fewer than one generation, another number of weights than students, or a temperature that is not positive.
    """

    tags = Tags("Das and Sanghavi, ICML 2023, arXiv 2301.13304; Furlanello et al., ICML 2018, arXiv 1805.04770",
                "distillation", batch="labeled", views=("weak",), target="class")
    generation: Tensor

    def __init__(self, backbone: Backbone, views: Views, *, num_classes: int, xi: float | Sequence[float] = 1.0,
                 temperature: float = 1.0, generations: int = 2, clamp: bool = True,
                 restart: Literal["new", "same"] = "new", **training: Unpack[Training]) -> None:
        super().__init__(backbone, views, **training)
        if generations < 1 or temperature <= 0.0:
            raise ValueError(f"model.generations={generations} and model.temperature={temperature}: "
                             "the first must be at least 1, the second above 0")
        xis = [float(xi)] * (generations - 1) if isinstance(xi, (int, float)) else [float(value) for value in xi]
        if len(xis) != generations - 1:
            raise ValueError(f"model.xi={xi} must be one number, or one for each of the {generations - 1} students of "
                             f"model.generations={generations}")
        self.head = nn.Linear(backbone.num_features, num_classes)
        self.teacher = make_teacher(nn.ModuleDict({"backbone": self.backbone, "head": self.head})).eval()
        self.initial = make_teacher(self.teacher)
        self.xis, self.temperature, self.clamp, self.restart = xis, temperature, clamp, restart
        self.schedule: PerGeneration = PerGeneration(self.schedule, generations)
        self.register_buffer("generation", torch.zeros((), dtype=torch.int64))
        self.current = 0  # the buffer's value, at hand without asking the device

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        self.teacher.eval()
        return self

    def setup(self, stage: str) -> None:
        """Note the weights the run starts from, pre-trained ones too; a checkpoint to resume is read after this."""
        if stage == "fit" and not self.current:
            for name, student in (("backbone", self.backbone), ("head", self.head)):
                self.initial[name].load_state_dict(student.state_dict())

    def on_train_start(self) -> None:
        self.current = int(self.generation)

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        if self.schedule.part(self.global_step, int(self.trainer.estimated_stepping_batches)) > self.current:
            self.next_generation()
            for optimizer in self.trainer.optimizers:
                optimizer.state.clear()

    def next_generation(self) -> None:
        """The student becomes the teacher and starts afresh."""
        self.generation += 1
        self.current += 1
        draw = torch.Generator().manual_seed(1000 * self.current + self.views.seed)
        for name, student in (("backbone", self.backbone), ("head", self.head)):
            self.teacher[name].load_state_dict(student.state_dict())
            student.load_state_dict(self.initial[name].state_dict())
            if self.restart == "new":
                reorder(student, draw)

    def step(self, batch: Batch) -> StepOutput:
        (x,), y, length = self.views(batch, "weak"), batch["y"], batch.get("length")
        h = self.backbone(x, length)
        logits = self.head(h)
        if not self.current:
            return StepOutput(F.cross_entropy(logits, y), features=h.detach())
        with torch.no_grad():
            scores = self.teacher["head"](self.teacher["backbone"](x, length)).float()
            p_teacher = (scores / self.temperature).softmax(1)
            agreement = (p_teacher.argmax(1) == y).float().mean()
        target = self_distillation_target(p_teacher, y, self.xis[self.current - 1], self.clamp)
        return StepOutput(F.cross_entropy(logits, target), {"teacher_agreement": agreement}, h.detach())

    def logits(self, batch: Batch) -> Tensor:
        return self.head(self(batch))
