"""iBOT: DINO, and besides the student tells of each hidden patch what the teacher, who sees it, makes of it.

Idea: a teacher that learns along with the student is a tokenizer of patches that needs no training of its own. Matching whole
pictures gives its patch distributions meaning, matching hidden patches makes them local.

Paper: Zhou et al., "iBOT: Image BERT Pre-Training with Online Tokenizer", ICLR 2022, arXiv 2111.07832, equations 2 and 3,
section 3.2; head shared by pictures and patches as there.

Deviations: as for DINO (`dino.py`). The centre of patches is a mean over hidden ones only, as in DINOv2. Masks are drawn per
sample, each picture hides blocks with probability ``mask_share``; hidden patches are gathered to the size of the largest mask,
so that nothing waits for the device (lightly's ``IBOTPatchLoss`` does). Sequences hide spans.

Batch: ``x`` (B, ...) and ``index`` (B,), with ``epoch`` and ``length`` (B,) where present.

Known limits: needs a backbone that works on patches (``tokens``); what stands for the picture is what the backbone pools (the
paper: the class token, ``pool=class`` of the ViT). Small batches and few steps need a lower momentum.
"""

from __future__ import annotations

from typing import Any, Unpack

import torch
from torch import Tensor, nn

from ssl_suite.batch import Backbone, Batch, StepOutput, Tags
from ssl_suite.functional.block_masking import block_mask, places, rows_and_columns
from ssl_suite.functional.ema import cosine_momentum, make_teacher, ramp
from ssl_suite.functional.masking import take
from ssl_suite.functional.multicrop import encode_together, swapped_prediction
from ssl_suite.method import Method, Training
from ssl_suite.nn.centre import Centre
from ssl_suite.nn.heads import PrototypeHead
from ssl_suite.optim import Frozen, parameter_groups
from ssl_suite.views import Views

LARGE = ("crop", "crop")
MASK_STREAM = 100


def patch_prediction(scores: Tensor, targets: Tensor, counts: Tensor, temperature: float) -> Tensor:
    """Cross-entropy of hidden patches, averaged within each picture, then over pictures; one without hidden patches adds 0.

    Args:
        scores: of the student, (B, M, K).
        targets: distributions of the teacher, (B, M, K).
        counts: which of the M places are hidden patches, (B, M) bool.
        temperature: of the student; above 0.
    """
    entropy = -(targets * (scores / temperature).log_softmax(dim=-1)).sum(dim=-1)
    return ((entropy * counts).sum(dim=1) / counts.sum(dim=1).clamp_min(1)).mean()


class IBOT(Method):
    """Self-distillation of pictures and of hidden patches, with multi-crop.

    Args:
        backbone: a patch transformer.
        views: kind ``crop`` is used twice, kind ``local`` as often as ``local_crops`` says.
        local_crops: small crops, which only the student sees and which hide nothing.
        temperature: of the student; above 0.
        teacher_temperature: of the teacher, at the start and after the warm-up; above 0.
        warmup: share of the run in which it gets there, in (0, 1].
        mask_ratio: range of the share of hidden patches, in (0, 1).
        mask_share: share of the large crops that hide any.
        smallest_block: patches of a block at least.
        num_prototypes: K.
        hidden_dim: width of the head's hidden layers.
        bottleneck_dim: width in which embeddings and prototypes are compared.
        head_norm: BatchNorm in the head, as in DINO; small nets need it, whose embeddings are nearly the same for all samples.
        centre_momentum: share of the old centres that stays with each batch.
        momentum: momentum of the teacher at the start, in [0, 1]; it rises to 1 along a cosine.
        frozen: share of the run, from its start, in which the prototypes do not learn.
        training: optimizer and schedule; see `Method`.

    Raises:
        ValueError: a temperature is not above 0, or the mask ratio is out of range.
    """

    tags = Tags("Zhou et al., ICLR 2022, arXiv 2111.07832", "pretraining", backbone="tokens", views=(*LARGE, "local"),
                across_batch=True, joint_embedding=True)
    teachers = {"teacher_backbone": "backbone", "teacher_head": "head"}

    def __init__(self, backbone: Backbone, views: Views, *, local_crops: int = 10, temperature: float = 0.1,
                 teacher_temperature: tuple[float, float] = (0.04, 0.07), warmup: float = 0.3,
                 mask_ratio: tuple[float, float] = (0.1, 0.5), mask_share: float = 0.5, smallest_block: int = 4,
                 num_prototypes: int = 8192, hidden_dim: int = 2048, bottleneck_dim: int = 256, head_norm: bool = False,
                 centre_momentum: float = 0.9, momentum: float = 0.996, frozen: float = 0.01, **training: Unpack[Training]) -> None:
        super().__init__(backbone, views, **training)
        if min(temperature, *teacher_temperature) <= 0.0 or not 0.0 < mask_ratio[0] <= mask_ratio[1] < 1.0:
            raise ValueError(f"temperature={temperature} and teacher_temperature={teacher_temperature} must be above 0, "
                             f"mask_ratio={mask_ratio} a range within (0, 1)")
        self.local_crops, self.temperature, self.frozen, self.smallest_block = local_crops, temperature, frozen, smallest_block
        self.teacher_temperature, self.warmup, self.base_momentum = teacher_temperature, warmup, momentum
        self.mask_ratio, self.mask_share = mask_ratio, mask_share
        self.head = PrototypeHead(backbone.num_features, hidden_dim, bottleneck_dim, num_prototypes, head_norm)
        self.mask_token = nn.Parameter(torch.zeros(backbone.num_features))
        self.teacher_backbone, self.teacher_head = make_teacher(self.backbone), make_teacher(self.head)
        self.centre, self.patch_centre = Centre(num_prototypes, centre_momentum), Centre(num_prototypes, centre_momentum)
        nn.init.trunc_normal_(self.mask_token, std=0.02)

    @property
    def encoder(self) -> nn.Module:
        """The teacher, as in the paper."""
        return self.teacher_backbone

    def momentum(self, step: int, total: int) -> float:
        return cosine_momentum(self.base_momentum, step, total)

    def groups(self) -> list[dict[str, Any]]:
        late = [module for name, module in self.named_modules() if name in ("head.prototypes", "patch_head.prototypes")]
        frozen = [{**group, "schedule": Frozen(self.schedule, self.frozen)} for group in parameter_groups(nn.ModuleList(late))]
        ids = {id(p) for group in frozen for p in group["params"]}
        rest = [{**g, "params": [p for p in g["params"] if id(p) not in ids]} for g in parameter_groups(self)]
        return [*rest, *frozen]

    def draw_mask(self, batch: Batch, stream: int, shape: tuple[int, int], valid: Tensor | None) -> Tensor:
        """Blocks hidden in one large crop of each sample, (B, N) bool."""
        draw = self.views.draw(batch, MASK_STREAM + stream)
        ratio = draw.uniform(1, low=self.mask_ratio[0], high=self.mask_ratio[1]) * draw.chance(self.mask_share, 1)
        return block_mask(draw, shape, ratio[:, 0], self.smallest_block, valid=valid)

    def patch_scores(self, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
        """Scores (B, M, K) of patches by the head that serves pictures too, of the student and of the teacher."""
        return self.head(student), self.teacher_head(teacher)

    def targets(self, scores: Tensor, patch_scores: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
        """The teacher's distributions for pictures (2, B, K) and patches (2B, M, K) from its scores, at one temperature."""
        temperature = ramp(*self.teacher_temperature, self.progress / self.warmup)
        return self.centre(scores, temperature), self.patch_centre(patch_scores, temperature, counts)

    def terms(self, batch: Batch) -> tuple[dict[str, Tensor], Tensor, Tensor]:
        """Losses by name, and representations of the large crops by the student and by the teacher, (2, B, D) each."""
        views, length = self.views(batch, *LARGE, *["local"] * self.local_crops), batch.get("length")
        x, lengths = torch.cat(views[:2]), None if length is None else length.repeat(2)
        tokens, valid = self.backbone.embed(x, lengths), self.backbone.patch_valid(x, lengths)
        n, prefix = tokens.shape[1], self.backbone.num_prefix_tokens
        shape = rows_and_columns(self.backbone.grid, n)
        halves = (None, None) if valid is None else valid.chunk(2)
        mask = torch.cat([self.draw_mask(batch, i, shape, halves[i]) for i in range(2)])
        ids, counts = places(mask, max(1, int(self.mask_ratio[1] * n)))

        hidden = (self.mask_token + self.backbone.positions(x)).to(tokens.dtype)
        encoded = self.backbone.encode(torch.where(mask.unsqueeze(-1), hidden, tokens), valid)
        h = self.backbone.pooled(encoded, valid)
        with torch.no_grad():
            seen = self.teacher_backbone.encode(self.teacher_backbone.embed(x, lengths), valid)
            h_teacher = self.teacher_backbone.pooled(seen, valid)
        small = encode_together(self.backbone, views[2:], length)
        scores = self.head(torch.cat([h, *small])).chunk(len(views))
        patches, teacher_patches = self.patch_scores(take(encoded[:, prefix:], ids), take(seen[:, prefix:], ids))
        whole, local = self.targets(self.teacher_head(h_teacher).unflatten(0, (2, -1)), teacher_patches, counts)
        losses = {"pictures": swapped_prediction(scores, list(whole), self.temperature),
                  "patches": patch_prediction(patches, local, counts, self.temperature)}
        return losses, h.unflatten(0, (2, -1)), h_teacher.unflatten(0, (2, -1))

    def step(self, batch: Batch) -> StepOutput:
        losses, _, h = self.terms(batch)
        return StepOutput(torch.stack(list(losses.values())).sum(), {name: loss.detach() for name, loss in losses.items()}, h[0])
