"""SimMIM: put a mask token in place of large hidden cells and read their raw content off with one linear layer.

Idea: with cells larger than a token, a hidden pixel's neighbours are hidden too, so that copying them does not help; then
neither a decoder nor special targets are needed.

Paper: Xie et al., "SimMIM: A Simple Framework for Masked Image Modeling", CVPR 2022, arXiv 2111.09886, sections 3.2 to 3.4.

Deviations: content is that of the backbone's patches in every modality (standardised pixels, log-mel energies, values), where
the paper has pixels. A sequence is hidden in spans of ``unit`` tokens. As in the paper the mask token stands before positions
are added, and the encoder computes all tokens.

Batch: ``x`` (B, ...) and ``index`` (B,), with ``epoch`` and ``length`` (B,) where present.

Known limits: needs a backbone that works on patches (``tokens``). A grid of few cells leaves few masks to draw: keep ``unit``
well below the grid's sides.
"""

from __future__ import annotations

from typing import Unpack

import torch
from torch import Tensor, nn

from ssl_suite.batch import Backbone, Batch, StepOutput, Tags
from ssl_suite.functional.block_masking import rows_and_columns, unit_mask
from ssl_suite.functional.masking import masked_mean, standardise_patches
from ssl_suite.method import Method, Training
from ssl_suite.methods.pretraining.mae import Reconstruction
from ssl_suite.views import Views

MASK_STREAM = 100


def masked_l1(made: Reconstruction) -> Tensor:
    """Mean absolute error over the hidden patches that exist (section 3.4), in float32."""
    return masked_mean((made.prediction.float() - made.target.float()).abs().mean(dim=-1), made.mask)


class SimMIM(Method):
    """Masked modelling with a linear head.

    Args:
        backbone: a patch transformer.
        views: the kind named by ``view`` is used.
        view: kind of view; the paper crops at random (``weak`` or ``crop``), ``clean`` suits the smallest pictures.
        mask_ratio: share of hidden cells, in (0, 1).
        unit: side of a cell in tokens.
        norm_targets: standardise each target patch, as MAE does; the paper does not.
        training: optimizer and schedule; see `Method`.

    Raises:
        ValueError: the ratio is out of range or the unit below 1.
    """

    tags = Tags("Xie et al., CVPR 2022, arXiv 2111.09886", "pretraining", backbone="tokens", views=("weak",))

    def __init__(self, backbone: Backbone, views: Views, *, view: str = "weak", mask_ratio: float = 0.6, unit: int = 2,
                 norm_targets: bool = False, **training: Unpack[Training]) -> None:
        super().__init__(backbone, views, **training)
        if not 0.0 < mask_ratio < 1.0 or unit < 1:
            raise ValueError(f"mask_ratio must lie in (0, 1) and unit be at least 1, got {mask_ratio} and {unit}")
        self.view, self.mask_ratio, self.unit, self.norm_targets = view, mask_ratio, unit, norm_targets
        self.mask_token = nn.Parameter(torch.zeros(backbone.num_features))
        self.head = nn.Linear(backbone.num_features, backbone.patch_dim)
        nn.init.trunc_normal_(self.mask_token, std=0.02)

    def reconstruct(self, batch: Batch, kind: str | None = None) -> Reconstruction:
        """The reconstruction of one view of a batch, of the kind trained on by default."""
        (x,), length = self.views(batch, kind or self.view), batch.get("length")
        patches, tokens = self.backbone.patches(x, length), self.backbone.embed(x, length)
        valid = self.backbone.patch_valid(x, length)
        draw, shape = self.views.draw(batch, MASK_STREAM), rows_and_columns(self.backbone.grid, tokens.shape[1])
        mask = unit_mask(draw, shape, self.unit, self.mask_ratio, valid)
        hidden = (self.mask_token + self.backbone.positions(x)).to(tokens.dtype)
        encoded = self.backbone.encode(torch.where(mask.unsqueeze(-1), hidden, tokens), valid)
        prediction = self.head(encoded[:, self.backbone.num_prefix_tokens:])
        return Reconstruction(standardise_patches(patches) if self.norm_targets else patches, prediction, mask, valid)

    def step(self, batch: Batch) -> StepOutput:
        return StepOutput(masked_l1(self.reconstruct(batch)))
