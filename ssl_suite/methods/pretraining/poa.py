"""POA: one run of self-distillation whose student can be cut to any size: each step also trains a slice of it.

Idea: a third branch. Beside the whole student a slice of it, of a width and depth drawn anew in each step, learns from the teacher
and from the whole student. Afterwards every slice of the teacher is a pre-trained net (``scripts/export.py --width --depth``).

Paper: Zhang et al., "POA: Pre-training Once for Models of All Sizes", ECCV 2024, arXiv 2408.01031, equations 1 to 8, with the
scale of the distillation terms and the draw of sizes of the official code.

Deviations: the ratio of inputs multiplies the sliced weights, not the inputs, which is the same. No loss on hidden patches and no
KoLeo, which the official code inherits from DINOv2. Prototypes are frozen at first, and get unit length inside the forward pass.
Sizes are a function of the seed and the optimizer step, so that all processes and a resumed run draw the same. Of the paper's
families the transformers: of speech and series, positions are those of the smaller width, not slices. The paper's own are ViT,
Swin and ResNet.

Batch: ``x`` (B, ...) and ``index`` (B,), with ``epoch`` and ``length`` (B,) where present.

Known limits: each size gets one step in as many as there are sizes; with few steps a small net trained alone is ahead. Three
passes a step. Where weights are sharded, those of the slice are gathered all at once.
"""

from __future__ import annotations

from typing import Any, Unpack

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_suite.batch import Backbone, Batch, StepOutput, Tags
from ssl_suite.functional.ema import cosine_momentum, make_teacher, ramp
from ssl_suite.functional.multicrop import encode_together, swapped_prediction
from ssl_suite.functional.sinkhorn import sinkhorn
from ssl_suite.method import Method, Training
from ssl_suite.nn.elastic import Slices, sizes
from ssl_suite.nn.heads import PrototypeHead
from ssl_suite.optim import Frozen, parameter_groups
from ssl_suite.views import Views

LARGE = ("crop", "crop")
Scores = list[Tensor]


def same_view(students: Scores, targets: Scores, temperature: float) -> Tensor:
    """Cross-entropy of each view's prediction with that of the whole student for the same view, averaged over views.

    Args:
        students: scores of the slice, (B, K) each.
        targets: scores of the whole student for the same views, (B, K) each; without gradient.
        temperature: of both; above 0.
    """
    student, target = torch.cat(students) / temperature, torch.cat(targets).detach() / temperature
    return -(target.softmax(dim=1) * student.log_softmax(dim=1)).sum(1).mean()


class POA(Method):
    """Self-distillation with an elastic student.

    Args:
        backbone: a patch transformer (`resized`), the largest size.
        views: kind ``crop`` is used twice, kind ``local`` as often as ``local_crops`` says.
        local_crops: small crops, which only the students see.
        smallest: width and depth of the smallest slice, as shares of the backbone's, in (0, 1].
        favour: how much oftener the smallest width, and the smallest depth, are drawn than the largest; 1 or more.
        intact_weight: lambda, the weight of the whole student's loss, in [0, 1]; the slice's get the rest each.
        temperature: of the students; above 0.
        teacher_temperature: of the teacher, at the start and after the warm-up; above 0.
        warmup: share of the run in which it gets there, in (0, 1].
        num_prototypes: K of each head.
        hidden_dim: width of the heads' hidden layers.
        bottleneck_dim: width in which embeddings and prototypes are compared.
        head_norm: BatchNorm in the heads, which slices of every size share; small nets need it, as with DINO.
        momentum: momentum of the teacher at the start, in [0, 1]; it rises to 1 along a cosine.
        frozen: share of the run, from its start, in which the prototypes do not learn.
        training: optimizer and schedule; see `Method`.

    Raises:
        ValueError: a temperature is not above 0, or a share is out of range.
    """

    tags = Tags("Zhang et al., ECCV 2024, arXiv 2408.01031", "pretraining", backbone="tokens", views=(*LARGE, "local"),
                across_batch=True, joint_embedding=True)
    teachers = {"teacher_backbone": "backbone", "teacher_heads": "heads"}

    def __init__(self, backbone: Backbone, views: Views, *, local_crops: int = 8, smallest: tuple[float, float] = (0.375, 0.5),
                 favour: float = 3.0, intact_weight: float = 0.8, temperature: float = 0.1,
                 teacher_temperature: tuple[float, float] = (0.04, 0.07), warmup: float = 0.1,
                 num_prototypes: tuple[int, ...] = (8192, 16384, 32768, 65536), hidden_dim: int = 2048,
                 bottleneck_dim: int = 256, head_norm: bool = False, momentum: float = 0.992, frozen: float = 0.01,
                 **training: Unpack[Training]) -> None:
        super().__init__(backbone, views, **training)
        if min(temperature, *teacher_temperature) <= 0.0:
            raise ValueError(f"temperature={temperature} and teacher_temperature={teacher_temperature} must be above 0")
        if not 0.0 <= intact_weight <= 1.0:
            raise ValueError(f"intact_weight={intact_weight} must lie in [0, 1]")
        self.local_crops, self.temperature, self.frozen, self.intact_weight = local_crops, temperature, frozen, intact_weight
        self.teacher_temperature, self.warmup, self.base_momentum = teacher_temperature, warmup, momentum
        self.heads = nn.ModuleList(PrototypeHead(backbone.num_features, hidden_dim, bottleneck_dim, k, head_norm)
                                   for k in num_prototypes)
        self.teacher_backbone, self.teacher_heads = make_teacher(self.backbone), make_teacher(self.heads)
        self.sizes = sizes(backbone, smallest, favour)
        self.slices, self.cut = Slices(backbone, self.sizes), self.size(0)

    @property
    def encoder(self) -> nn.Module:
        """The teacher at its full size."""
        return self.teacher_backbone

    def momentum(self, step: int, total: int) -> float:
        return cosine_momentum(self.base_momentum, step, total)

    def groups(self) -> list[dict[str, Any]]:
        prototypes = nn.ModuleList(head.prototypes for head in self.heads)  # type: ignore[misc]
        late = [{**group, "schedule": Frozen(self.schedule, self.frozen)} for group in parameter_groups(prototypes)]
        bodies = nn.ModuleList(head.body for head in self.heads)  # type: ignore[misc]
        return [*parameter_groups(self.backbone), *parameter_groups(bodies), *late]

    def size(self, step: int) -> tuple[int, int]:
        """Width and depth of the slice in an optimizer step: the list of sizes in a random order, again and again."""
        turn, place = divmod(step, len(self.sizes))
        return self.sizes[np.random.default_rng((self.views.seed, turn)).permutation(len(self.sizes))[place]]

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        self.cut = self.size(self.global_step)  # outside of the step, which is one graph for each size

    def scores(self, views: list[Tensor], length: Tensor | None, size: tuple[int, int] | None = None) -> list[Scores]:
        """Scores (B, K) of each view by each head, from the whole student, or from its slice of a size."""
        def cut(x: Tensor, length: Tensor | None) -> Tensor:
            return self.slices(self.backbone, *size, x, length) if size else self.backbone(x, length)

        h = torch.cat(encode_together(cut, views, length))
        full = self.backbone.num_features
        h = F.pad(h * (full / h.shape[1]), (0, full - h.shape[1]))  # the first layer of a head, cut like all others
        return [list(head(h).chunk(len(views))) for head in self.heads]

    def step(self, batch: Batch) -> StepOutput:
        views, length = self.views(batch, *LARGE, *["local"] * self.local_crops), batch.get("length")
        with torch.no_grad():
            h = torch.cat(encode_together(self.teacher_backbone, views[:2], length))
            temperature = ramp(*self.teacher_temperature, self.progress / self.warmup)
            targets = [list(sinkhorn(head(h), temperature).chunk(2)) for head in self.teacher_heads]
        intact = self.scores(views, length)
        elastic = self.scores(views, length, self.cut)
        whole = torch.stack([swapped_prediction(s, t, self.temperature) for s, t in zip(intact, targets, strict=True)]).mean()
        cross = torch.stack([swapped_prediction(s, t, self.temperature) for s, t in zip(elastic, targets, strict=True)]).mean()
        crops = [slice(0, 2), slice(2, None)] if self.local_crops else [slice(0, 2)]
        same = torch.stack([same_view(s[part], t[part], self.temperature) for s, t in zip(elastic, intact, strict=True)
                            for part in crops]).sum() / len(self.heads)
        logs = {"intact": whole.detach(), "elastic": cross.detach(), "same_view": same.detach()}
        loss = self.intact_weight * whole + (1.0 - self.intact_weight) * (cross + same)
        return StepOutput(loss, logs, h.chunk(2)[0])
