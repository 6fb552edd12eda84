"""DINOv2: iBOT with a head for patches of its own, balanced targets, and features kept apart from their nearest neighbours.

Idea: what made iBOT scale: untied heads, targets that fill the prototypes alike (Sinkhorn-Knopp), and a regulariser that spreads
a batch's features by the logarithm of the distance to the nearest one (KoLeo).

Paper: Oquab et al., "DINOv2: Learning Robust Visual Features without Supervision", TMLR 2024, arXiv 2304.07193, section 4.

Deviations: as for iBOT (`ibot.py`). KoLeo (lightly's, on the pooled features before the head, one large crop at a time, in
float32) seeks neighbours among all processes, the official code among one's own. Drop path, layer scale, layer-wise decay and a
slower patch embedding belong to the backbone and the optimizer and are not set here.

Batch: ``x`` (B, ...) and ``index`` (B,), with ``epoch`` and ``length`` (B,) where present.

Known limits: those of iBOT. Sinkhorn wants more samples in a batch, over all processes, than a few.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from lightly.loss import KoLeoLoss
from torch import Tensor

from ssl_suite.batch import Backbone, Batch, StepOutput, Tags
from ssl_suite.functional.distributed import gather
from ssl_suite.functional.ema import make_teacher, ramp
from ssl_suite.functional.precision import full_precision
from ssl_suite.functional.sinkhorn import masked_sinkhorn, sinkhorn
from ssl_suite.methods.pretraining.ibot import IBOT, LARGE
from ssl_suite.nn.heads import PrototypeHead
from ssl_suite.views import Views


@full_precision
def koleo(h: Tensor) -> Tensor:
    """Mean of -log of the distance to the nearest neighbour among features (B, D) of unit length, over all processes."""
    return KoLeoLoss()(gather(h.float()))


class DINOv2(IBOT):
    """iBOT with untied heads, balanced targets and KoLeo.

    Args:
        backbone: a patch transformer.
        views: kind ``crop`` is used twice, kind ``local`` as often as ``local_crops`` says.
        centring: what balances the targets: ``sinkhorn`` or the running ``mean`` of DINO.
        koleo_weight: weight of KoLeo, summed over the two large crops.
        num_prototypes: K, of each head.
        hidden_dim: width of the heads' hidden layers.
        bottleneck_dim: width in which embeddings and prototypes are compared.
        head_norm: BatchNorm in the heads, as in DINO.
        options: as for `IBOT`.

    Raises:
        ValueError: another centring.
    """

    tags = Tags("Oquab et al., TMLR 2024, arXiv 2304.07193", "pretraining", backbone="tokens", views=(*LARGE, "local"),
                across_batch=True, joint_embedding=True)
    teachers = {**IBOT.teachers, "teacher_patch_head": "patch_head"}

    def __init__(self, backbone: Backbone, views: Views, *, centring: Literal["sinkhorn", "mean"] = "sinkhorn",
                 koleo_weight: float = 0.1, num_prototypes: int = 65536, hidden_dim: int = 2048, bottleneck_dim: int = 256,
                 head_norm: bool = False, **options: Any) -> None:
        sizes: dict[str, Any] = {"num_prototypes": num_prototypes, "hidden_dim": hidden_dim, "bottleneck_dim": bottleneck_dim}
        super().__init__(backbone, views, head_norm=head_norm, **sizes, **options)
        if centring not in ("sinkhorn", "mean"):
            raise ValueError(f"centring must be 'sinkhorn' or 'mean', got {centring!r}")
        self.centring, self.koleo_weight = centring, koleo_weight
        self.patch_head = PrototypeHead(backbone.num_features, hidden_dim, bottleneck_dim, num_prototypes, head_norm)
        self.teacher_patch_head = make_teacher(self.patch_head)

    def patch_scores(self, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
        """Scores (B, M, K) of patches by their own head, of the student and of the teacher."""
        return self.patch_head(student), self.teacher_patch_head(teacher)

    def targets(self, scores: Tensor, patch_scores: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
        """The teacher's distributions for pictures (2, B, K) and patches (2B, M, K) from its scores, at one temperature."""
        if self.centring == "mean":
            return super().targets(scores, patch_scores, counts)
        temperature = ramp(*self.teacher_temperature, self.progress / self.warmup)
        patches = masked_sinkhorn(patch_scores.flatten(0, 1), counts.flatten(), temperature)
        return sinkhorn(scores.flatten(0, 1), temperature).view_as(scores), patches.view_as(patch_scores)

    def step(self, batch: Batch) -> StepOutput:
        losses, h, h_teacher = self.terms(batch)
        losses["koleo"] = self.koleo_weight * torch.stack([koleo(one) for one in h]).sum()
        logs = {name: loss.detach() for name, loss in losses.items()}
        return StepOutput(torch.stack(list(losses.values())).sum(), logs, h_teacher[0])
