"""I-JEPA: from one part of a sample predict what a momentum encoder makes of other parts, in its space and not in pixels.

Idea: a target encoder sees the whole sample; the context encoder sees a large block without the target blocks, and a narrow
predictor, told only where the targets lie, has to say what the target encoder made of them. Targets large enough to mean
something and a context that is informative make the representation semantic without any views.

Paper: Assran et al., "Self-Supervised Learning from Images with a Joint-Embedding Predictive Architecture", CVPR 2023,
arXiv 2301.08243, sections 3 and 4; LayerNorm on the targets and smooth L1 as in the official code.

Deviations: the official code draws one block size per batch and cuts all masks to the smallest, so that they stack. Here each
sample draws sizes of its own; targets are padded to the largest block, contexts to ``max_context`` of the tokens (what is more
is left out at random), and padding is neither attended to nor counted. Each block has the same weight, as there. A block may
reach over the whole side of the grid. On sequences blocks are spans. Where the backbone has a class token, it is carried along
and not predicted.

Batch: ``x`` (B, ...) and ``index`` (B,), with ``epoch`` and ``length`` (B,) where present.

Known limits: needs a backbone that works on patches (``tokens``). The loss says nothing about quality (it often rises after a
first fall): watch the probe and the rank of the features. On small pictures the method may learn little.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Unpack

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_suite.batch import Backbone, Batch, StepOutput, Tags
from ssl_suite.functional.block_masking import most_in_block, places, random_blocks, rows_and_columns
from ssl_suite.functional.ema import make_teacher, ramp
from ssl_suite.functional.masking import take
from ssl_suite.functional.random import Draw
from ssl_suite.method import Method, Training
from ssl_suite.nn.decoder import TokenPredictor
from ssl_suite.views import Views

MASK_STREAM = 100


def context_of(draw: Draw, targets: Tensor, block: Tensor, size: int, valid: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Tokens of the context block outside of all targets; other tokens outside, or any, where there are none.

    Args:
        draw: one stream per row.
        targets: target blocks, (B, K, N) bool.
        block: context block, (B, N) bool.
        size: tokens at most, M.
        valid: tokens that exist, (B, N) bool.

    Returns:
        Token numbers (B, M) int64, which are in random order, and which of them exist, (B, M) bool.
    """
    exist = torch.ones_like(block) if valid is None else valid
    free = exist & ~targets.any(dim=1)
    chosen = block & free
    for other in (free, exist):
        chosen = torch.where(chosen.any(dim=1, keepdim=True), chosen, other)
    ids = (draw.uniform(block.shape[1]) + 2.0 * ~chosen).argsort(dim=1)[:, :size]
    return ids, chosen.gather(1, ids)


def prediction_loss(prediction: Tensor, target: Tensor, asked: Tensor) -> Tensor:
    """Smooth L1 over channels and tokens of a block, then the mean over blocks and samples, in float32.

    Args:
        prediction: (B, K, M, D).
        target: likewise.
        asked: tokens that belong to the block, (B, K, M) bool, one at least.
    """
    error = F.smooth_l1_loss(prediction.float(), target.float(), reduction="none").mean(dim=-1)
    return ((error * asked).sum(dim=2) / asked.sum(dim=2)).mean()


class IJEPA(Method):
    """Prediction of a momentum encoder's tokens.

    Args:
        backbone: a patch transformer.
        views: the kind named by ``view`` is used.
        view: kind of view; the paper crops at random (``weak``), ``clean`` suits the smallest pictures.
        targets: target blocks K.
        target_scale: range of a target's share of the tokens.
        target_aspect: range of a target's height over its width.
        context_scale: range of the context block's share of the tokens, before the targets are taken out.
        max_context: share of the tokens that a context holds at most.
        predictor_width: width of the predictor, divisible by 32.
        predictor_depth: blocks of the predictor.
        momentum: momentum of the target encoder at the start, in [0, 1]; it rises to 1 in a line.
        training: optimizer and schedule; see `Method`.

    Raises:
        ValueError: a share lies outside of (0, 1].
    """

    tags = Tags("Assran et al., CVPR 2023, arXiv 2301.08243", "pretraining", backbone="tokens", views=("weak",))
    teachers = {"teacher": "backbone"}

    def __init__(self, backbone: Backbone, views: Views, *, view: str = "weak", targets: int = 4,
                 target_scale: Sequence[float] = (0.15, 0.2), target_aspect: Sequence[float] = (0.75, 1.5),
                 context_scale: Sequence[float] = (0.85, 1.0), max_context: float = 0.5, predictor_width: int = 384,
                 predictor_depth: int = 12, momentum: float = 0.996, **training: Unpack[Training]) -> None:
        super().__init__(backbone, views, **training)
        for name, share in (("target_scale", target_scale[1]), ("context_scale", context_scale[1]), ("max_context", max_context)):
            if not 0.0 < share <= 1.0:
                raise ValueError(f"{name} is a share of the tokens and must lie in (0, 1], got {share}")
        self.view, self.targets, self.target_scale, self.target_aspect = view, targets, target_scale, target_aspect
        self.context_scale, self.max_context, self.base_momentum = context_scale, max_context, momentum
        self.predictor = TokenPredictor(backbone.num_features, predictor_width, predictor_depth, backbone.grid)
        self.teacher = make_teacher(self.backbone)

    @property
    def encoder(self) -> nn.Module:
        """The target encoder, as in the paper."""
        return self.teacher

    def momentum(self, step: int, total: int) -> float:
        return ramp(self.base_momentum, 1.0, step / max(total, 1))

    def queries(self, batch: Batch, positions: Tensor) -> Tensor:
        """What asks the predictor for the tokens at positions (B, K, M, W), of the same shape."""
        return self.predictor.mask_token + positions

    def step(self, batch: Batch) -> StepOutput:
        (x,), length = self.views(batch, self.view), batch.get("length")
        tokens, valid = self.backbone.embed(x, length), self.backbone.patch_valid(x, length)
        n, prefix, draw = tokens.shape[1], self.backbone.num_prefix_tokens, self.views.draw(batch, MASK_STREAM)
        shape = rows_and_columns(self.backbone.grid, n)
        blocks = random_blocks(draw, self.targets, shape, self.target_scale, self.target_aspect, valid)
        block = random_blocks(draw, 1, shape, self.context_scale, (1.0, 1.0), valid)[:, 0]
        kept, seen = context_of(draw, blocks, block, max(1, round(self.max_context * n)), valid)
        wanted, asked = places(blocks, most_in_block(shape, self.target_scale, self.target_aspect))

        context = self.backbone.encode(take(tokens, kept), seen)[:, prefix:]
        context = self.predictor.embed(context) + self.predictor.positions(n, kept)
        prediction = self.predictor(context, seen, self.queries(batch, self.predictor.positions(n, wanted)), asked)
        with torch.no_grad():
            encoded = self.teacher.encode(self.teacher.embed(x, length), valid)
            target = F.layer_norm(encoded[:, prefix:].float(), encoded.shape[-1:])
            target = take(target, wanted.flatten(1)).view_as(prediction)
        features = self.teacher.pooled(encoded, valid)
        return StepOutput(prediction_loss(prediction, target, asked), features=features)
