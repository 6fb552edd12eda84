"""Masked autoencoder: hide most patches, encode the rest, rebuild what was hidden.

Idea: with three quarters of the patches gone, filling in the gaps takes an understanding of the whole; and since the encoder
never sees the hidden patches, it costs a quarter of a full forward.

Paper: He et al., "Masked Autoencoders Are Scalable Vision Learners", CVPR 2022, arXiv 2111.06377. Speech as in Audio-MAE
(Huang et al., NeurIPS 2022, arXiv 2207.06405): patches of the log-mel spectrogram, here with random unstructured masks.

Deviations: the decoder works on the hidden tokens that exist only (padding is neither seen nor rebuilt); positions of the
decoder are fixed sinusoids in every modality, as in the paper for pictures. Rows with less than half of the batch's tokens
may keep fewer visible tokens than the ratio asks for, never none.

Batch: ``x`` (B, ...) and ``index`` (B,), with ``epoch`` and ``length`` (B,) where present.

Known limits: needs a backbone that works on patches (``tokens``); mean-pooled tokens of tiny pictures score low with kNN and
rise with few-label probes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Unpack

from torch import Tensor

from ssl_suite.batch import Backbone, Batch, StepOutput, Tags
from ssl_suite.functional.masking import (
    mask_from_order,
    masked_mean,
    random_order,
    shown_tokens,
    standardise_patches,
    take,
    visible_count,
)
from ssl_suite.functional.random import Draw
from ssl_suite.method import Method, Training
from ssl_suite.nn.decoder import TransformerDecoder
from ssl_suite.views import Views

MASK_STREAM = 100


@dataclass
class Reconstruction:
    """One pass of the autoencoder.

    Attributes:
        target: what is to be rebuilt, (B, N, P).
        prediction: what was rebuilt, (B, N, P).
        mask: True = hidden, (B, N) bool.
        valid: tokens that exist, (B, N) bool, or None.
    """

    target: Tensor
    prediction: Tensor
    mask: Tensor
    valid: Tensor | None

    @property
    def loss(self) -> Tensor:
        """Mean squared error over the hidden tokens that exist (section 3, "Reconstruction target")."""
        hidden = self.mask if self.valid is None else self.mask & self.valid
        return masked_mean((self.prediction.float() - self.target.float()).square().mean(-1), hidden)


def reconstruct(backbone: Backbone, decoder: TransformerDecoder, x: Tensor, draw: Draw, mask_ratio: float,
                norm_targets: bool = True, length: Tensor | None = None) -> Reconstruction:
    """Mask, encode the visible tokens, decode all of them.

    Args:
        backbone: a patch transformer.
        decoder: rebuilds patches from visible tokens.
        x: standardised samples (B, ...).
        draw: one stream of random numbers per row.
        mask_ratio: share of the tokens to hide, in [0, 1).
        norm_targets: standardise each target patch.
        length: valid time steps of each row, (B,).
    """
    patches, tokens = backbone.patches(x, length), backbone.embed(x, length)
    valid = backbone.patch_valid(x, length)
    order = random_order(draw, tokens.shape[1], valid)
    count = visible_count(tokens.shape[1], mask_ratio)
    kept = order[:, :count]
    kept_valid = None if valid is None else shown_tokens(valid, mask_ratio, count)
    prefix = backbone.num_prefix_tokens
    encoded = backbone.encode(take(tokens, kept), kept_valid)[:, prefix:]
    mask = mask_from_order(order, count)
    if valid is not None and kept_valid is not None:
        mask = mask.scatter(1, kept, ~kept_valid) & valid
    prediction = decoder(encoded, kept, tokens.shape[1], kept_valid, valid)
    return Reconstruction(standardise_patches(patches) if norm_targets else patches, prediction, mask, valid)


class MAE(Method):
    """Masked autoencoder.

    Args:
        backbone: a patch transformer.
        views: the kind named by ``view`` is used.
        view: kind of view; the paper crops at random (here ``weak`` or ``crop``), and finds that the method learns from
            ``clean`` samples too (table 1e), which suits the smallest pictures.
        mask_ratio: share of hidden tokens, in [0, 1).
        decoder_width: width of the decoder, divisible by 32.
        decoder_depth: blocks of the decoder.
        norm_targets: standardise each target patch.
        training: optimizer and schedule; see `Method`.
    """

    tags = Tags("He et al., CVPR 2022, arXiv 2111.06377", "pretraining", backbone="tokens", views=("weak",))

    def __init__(self, backbone: Backbone, views: Views, *, view: str = "weak", mask_ratio: float = 0.75, decoder_width: int = 512,
                 decoder_depth: int = 8, norm_targets: bool = True, **training: Unpack[Training]) -> None:
        super().__init__(backbone, views, **training)
        visible_count(1, mask_ratio)
        self.view, self.mask_ratio, self.norm_targets = view, mask_ratio, norm_targets
        self.decoder = TransformerDecoder(backbone.num_features, decoder_width, decoder_depth, backbone.patch_dim, backbone.grid)

    def reconstruct(self, batch: Batch, kind: str | None = None) -> Reconstruction:
        """The reconstruction of one view of a batch, of the kind trained on by default."""
        (x,) = self.views(batch, kind or self.view)
        draw = self.views.draw(batch, MASK_STREAM)
        return reconstruct(self.backbone, self.decoder, x, draw, self.mask_ratio, self.norm_targets, batch.get("length"))

    def step(self, batch: Batch) -> StepOutput:
        return StepOutput(self.reconstruct(batch).loss)
