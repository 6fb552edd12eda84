"""data2vec 2.0: from the visible part of a sample predict what a momentum teacher, seeing all of it, makes of the hidden part.

Idea: targets are the teacher's contextualised tokens, averaged over its top blocks, so one method serves every modality. The
teacher's costly pass is shared by several masks of the sample, the encoder sees visible tokens only, and a small convolutional
decoder does the rest.

Paper: Baevski et al., "Efficient Self-supervised Learning with Contextualized Target Representations for Vision, Speech and
Language", ICML 2023, arXiv 2212.07525, section 3; targets as in data2vec (arXiv 2202.03555, section 3.3).

Deviations: a target is the mean of whole blocks' outputs, where the official code takes their feed-forward part before the
residual connection. Blocks' outputs are normalised over their channels for pictures and over time for speech and series
(instance norm over the tokens that exist). No extra loss on the class token. Shown blocks lie within the grid. The loss is a
mean over channels; the official code has another constant.

Batch: ``x`` (B, ...) and ``index`` (B,), with ``epoch`` and ``length`` (B,) where present.

Known limits: needs a backbone that works on patches (``tokens``). Targets can become constant: watch the rank of the features,
which are the teacher's, and lower the rate or raise the momentum. A row of one token has no instance norm and teaches nothing.
"""

from __future__ import annotations

from typing import Unpack

import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_suite.batch import Backbone, Batch, StepOutput, Tags
from ssl_suite.functional.block_masking import kept_blocks, rows_and_columns
from ssl_suite.functional.ema import make_teacher, ramp
from ssl_suite.functional.masking import masked_mean, shown_tokens, take, visible_count
from ssl_suite.method import Method, Training
from ssl_suite.nn.decoder import ConvDecoder
from ssl_suite.nn.transformer import mean_pool
from ssl_suite.views import Views

MASK_STREAM = 100


def instance_norm(h: Tensor, valid: Tensor | None = None, eps: float = 1e-5) -> Tensor:
    """Each channel of tokens (B, N, D) brought to mean 0 and variance 1 over those that exist (B, N)."""
    mean = mean_pool(h, valid).unsqueeze(1)
    var = mean_pool((h - mean).square(), valid).unsqueeze(1)
    return (h - mean) / (var + eps).sqrt()


def targets(layers: list[Tensor], modality: str, valid: Tensor | None = None) -> Tensor:
    """Mean of blocks' outputs (B, N, D), each normalised in float32: by LayerNorm for pictures, over time elsewhere."""
    if modality == "images":
        return torch.stack([F.layer_norm(h.float(), h.shape[-1:]) for h in layers]).mean(0)
    return torch.stack([instance_norm(h.float(), valid) for h in layers]).mean(0)


class Data2Vec(Method):
    """Regression of a momentum teacher's contextualised tokens.

    Args:
        backbone: a patch transformer.
        views: the kind named by ``view`` is used.
        view: kind of view; the paper crops at random (``weak``), ``clean`` suits the smallest pictures.
        masks: masks of each sample for one pass of the teacher.
        mask_ratio: share of hidden tokens, in [0, 1).
        block: side of a shown block, tokens.
        top_layers: blocks of the teacher whose outputs are averaged; all where it has fewer.
        noise: standard deviation of what stands in hidden places.
        decoder_width: channels of the decoder.
        decoder_depth: its convolutions.
        kernel: tokens that one of them sees along each axis.
        conv_groups: their groups; must divide both widths.
        momentum: momentum of the teacher, first and last value; it goes there in a line.
        ramp: share of the run after which the last value is reached, above 0.
        training: optimizer and schedule; see `Method`.
    """

    tags = Tags("Baevski et al., ICML 2023, arXiv 2212.07525", "pretraining", backbone="tokens", views=("weak",))
    teachers = {"teacher": "backbone"}

    def __init__(self, backbone: Backbone, views: Views, *, view: str = "weak", masks: int = 8, mask_ratio: float = 0.8,
                 block: int = 3, top_layers: int = 10, noise: float = 0.01, decoder_width: int = 768, decoder_depth: int = 6,
                 kernel: int = 3, conv_groups: int = 16, momentum: tuple[float, float] = (0.999, 0.9999), ramp: float = 0.3,
                 **training: Unpack[Training]) -> None:
        super().__init__(backbone, views, **training)
        visible_count(1, mask_ratio)
        if min(masks, block, top_layers) < 1:
            raise ValueError(f"masks={masks}, block={block} and top_layers={top_layers} must be at least 1")
        self.view, self.masks, self.mask_ratio, self.block, self.top_layers = view, masks, mask_ratio, block, top_layers
        self.noise, (self.first_momentum, self.last_momentum), self.ramp = noise, momentum, ramp
        self.decoder = ConvDecoder(backbone.num_features, decoder_width, decoder_depth, kernel, conv_groups, backbone.grid)
        self.teacher = make_teacher(self.backbone)

    def momentum(self, step: int, total: int) -> float:
        return ramp(self.first_momentum, self.last_momentum, step / max(1.0, self.ramp * total))

    @torch.no_grad()
    def contextualised(self, x: Tensor, length: Tensor | None, valid: Tensor | None) -> tuple[Tensor, Tensor]:
        """What the teacher makes of all tokens, as targets (B, N, D), and its representation (B, D)."""
        layers = self.teacher.layers(self.teacher.embed(x, length), valid)[-self.top_layers:]
        return targets(layers, self.backbone.spec.modality, valid), mean_pool(layers[-1], valid)

    def predict(self, batch: Batch, tokens: Tensor, valid: Tensor | None) -> tuple[Tensor, Tensor]:
        """Prediction of all tokens under every mask, (B * masks, N, D), and what each mask hides, (B * masks, N) bool.

        Args:
            batch: tells what is random.
            tokens: embedded, (B, N, D).
            valid: which of them exist, (B, N) bool, or None.
        """
        n = tokens.shape[1]
        draw, count = self.views.draw(batch, MASK_STREAM).copies(self.masks), visible_count(n, self.mask_ratio)
        valid = None if valid is None else valid.repeat_interleave(self.masks, dim=0)
        kept = kept_blocks(draw, rows_and_columns(self.backbone.grid, n), self.block, count, valid)
        shown = None if valid is None else shown_tokens(valid, self.mask_ratio, count)
        visible = take(tokens.repeat_interleave(self.masks, dim=0), kept)
        encoded = self.backbone.encode(visible, shown)[:, self.backbone.num_prefix_tokens:]
        mask = torch.ones(len(kept), n, dtype=torch.bool, device=kept.device).scatter(1, kept, False)
        if valid is not None and shown is not None:
            mask = mask.scatter(1, kept, ~shown) & valid
        return self.decoder(encoded, kept, self.noise * draw.normal(*tokens.shape[1:]), shown, valid), mask

    def step(self, batch: Batch) -> StepOutput:
        (x,), length = self.views(batch, self.view), batch.get("length")
        valid = self.backbone.patch_valid(x, length)
        target, h = self.contextualised(x, length, valid)
        prediction, mask = self.predict(batch, self.backbone.embed(x, length), valid)
        error = (prediction.float() - target.repeat_interleave(self.masks, dim=0)).square().mean(dim=-1)
        return StepOutput(masked_mean(error, mask), features=h)
