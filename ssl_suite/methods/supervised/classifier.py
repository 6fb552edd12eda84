"""Classifier: a linear head on a backbone; supervised baseline, linear probe and fine-tuning.

Idea: one program for the three, told apart by what is frozen and how fast each layer learns.

Paper: none for the baseline. Linear probe as in He et al. (MoCo, arXiv 1911.05722, section 4.1): frozen backbone in
evaluation mode, so that BatchNorm neither normalises by the batch nor learns. Fine-tuning as in BEiT and MAE (arXiv
2111.06377, appendix A.1): layer-wise decay of the rate, mixup (arXiv 1710.09412), CutMix (arXiv 1905.04899), label
smoothing.

Deviations: the probe has no BatchNorm before its head (MAE's has one without weights); put the rate up instead. Mixing
draws one number per batch, as timm's default does, from numpy's global generator: a resumed run goes on with other
numbers than an uninterrupted one. Mixed waveforms and series are as long as the longer of the two.

Batch: ``x`` (B, ...), ``y`` (B,), ``index`` (B,), with ``epoch`` and ``length`` (B,) where present. Mixing needs an
even B.

Known limits: CutMix cuts boxes out of pictures and is refused elsewhere.
"""

from __future__ import annotations

from typing import Any, Self, Unpack

import torch
import torch.nn.functional as F
from timm.data import Mixup
from torch import Tensor, nn

from ssl_suite.batch import Backbone, Batch, StepOutput, Tags
from ssl_suite.method import Method, Training
from ssl_suite.optim import layer_groups, parameter_groups
from ssl_suite.views import Views


class Classifier(Method):
    """Cross-entropy on labelled samples.

    Args:
        backbone: any backbone, fresh or pre-trained.
        views: kind ``weak`` is used for training.
        num_classes: number of classes.
        frozen: train the head alone on a backbone in evaluation mode (linear probe).
        layer_decay: factor on the rate per layer below the head, in (0, 1]; None for one rate (0.65 to 0.75 is
            usual for fine-tuning a transformer).
        mixup: parameter of mixup's Beta distribution; 0 turns it off (0.8 is usual).
        cutmix: the same for CutMix (1.0 is usual); with both on, a coin decides.
        label_smoothing: share of the target spread over all classes.
        training: optimizer and schedule; see `Method`.

    Raises:
        ValueError: layer decay is asked of a frozen backbone, or lies outside (0, 1].
    """

    tags = Tags("none", "supervised", batch="labeled", views=("weak",), target="class")

    def __init__(self, backbone: Backbone, views: Views, *, num_classes: int, frozen: bool = False,
                 layer_decay: float | None = None, mixup: float = 0.0, cutmix: float = 0.0,
                 label_smoothing: float = 0.0, **training: Unpack[Training]) -> None:
        super().__init__(backbone, views, **training)
        if layer_decay is not None and (frozen or not 0.0 < layer_decay <= 1.0):
            raise ValueError(f"model.layer_decay={layer_decay} with model.frozen={frozen}: give a number in (0, 1] for "
                             "a backbone that is trained, or leave it out")
        self.head = nn.Linear(backbone.num_features, num_classes)
        self.frozen, self.layer_decay, self.label_smoothing = frozen, layer_decay, label_smoothing
        self.mixes = mixup > 0.0 or cutmix > 0.0
        self.mix = Mixup(mixup, cutmix, label_smoothing=label_smoothing, num_classes=num_classes)
        if frozen:
            self.backbone.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        if self.frozen:
            self.backbone.eval()
        return self

    def groups(self) -> list[dict[str, Any]]:
        if self.layer_decay is None:
            return parameter_groups(self)
        rate = self.make_optimizer([torch.zeros(1, requires_grad=True)]).defaults["lr"]
        return layer_groups(self.backbone, [self.head], rate, self.layer_decay)

    def mixed(self, x: Tensor, y: Tensor, length: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
        """Every sample blended with one other: samples, soft targets (B, K) and lengths."""
        if len(x) % 2:
            raise ValueError(f"mixing needs an even number of samples, got {len(x)}; change data.batch_size")
        if self.mix.cutmix_alpha and x.ndim != 4:
            raise ValueError(f"model.cutmix cuts boxes out of pictures (B, C, H, W), got {tuple(x.shape)}; "
                             "set model.cutmix=0")
        x, target = self.mix(x, y)
        return x, target, None if length is None else torch.maximum(length, length.flip(0))

    def step(self, batch: Batch) -> StepOutput:
        (x,), target, length = self.views(batch, "weak"), batch["y"], batch.get("length")
        if self.mixes:
            x, target, length = self.mixed(x, target, length)
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            h = self.backbone(x, length)
        smoothing = 0.0 if self.mixes else self.label_smoothing  # mixed targets are smoothed already
        return StepOutput(F.cross_entropy(self.head(h), target, label_smoothing=smoothing), features=h.detach())

    def logits(self, batch: Batch) -> Tensor:
        return self.head(self(batch))
