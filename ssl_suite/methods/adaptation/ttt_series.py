"""Test-time training for convolutional nets over time: fill in hidden stretches of the series that is to be predicted.

Idea: as `ttt`, with a pretext task that series have. A share of the patches is hidden in all channels; the shared layers
and a head of its own rebuild the values there from what is left. A sensor that reads otherwise than in training makes
for poor rebuilding, and the gradient of that error on the very sample moves the shared layers towards the new sensor.

Paper: Sun et al., "Test-Time Training with Self-Supervision for Generalization under Distribution Shifts", ICML 2020,
arXiv 1909.13231, with the masked task of Nie et al. (PatchTST), ICLR 2023, arXiv 2211.14730: patches that do not overlap,
hidden ones are set to zero, mean squared error of the hidden values alone.

Deviations: PatchTST hides each channel by a mask of its own in a transformer that treats channels alone, and standardises
every series first; here one mask covers all channels of a net that mixes them, and values stay as the data set's
statistics leave them, so that the gain and the offset of a sensor are seen.

Batch: ``x`` (B, C, T), ``y`` (B,), ``index`` (B,), with ``epoch`` and ``length`` (B,) where present.

Known limits: as `ttt`; stages must keep the time axis (`SeriesConvNet` does). For patch transformers over series and
speech take `ttt_mae`.
"""

from __future__ import annotations

from typing import Any, Unpack

import torch
from torch import Tensor, nn

from ssl_suite.batch import Backbone, Tags
from ssl_suite.functional.masking import masked_mean, random_order, visible_count
from ssl_suite.functional.random import Draw
from ssl_suite.method import Method, Training
from ssl_suite.methods.adaptation.ttt import TestTimeTraining, fork
from ssl_suite.nn.transformer import valid_steps
from ssl_suite.views import Views


class Filling(nn.Module):
    """The self-supervised head: a copy of the layers above the shared ones, and a linear layer that rebuilds each step.

    Args:
        backbone: convolutional, with ``stages`` that keep the time axis.
        shared_until: number of its stages that both heads share; None is all but the last.
        mask_ratio: share of hidden patches, in [0, 1).
        patch: time steps of a patch.
    """

    figure = "ssl_loss"

    def __init__(self, backbone: Any, shared_until: int | None, mask_ratio: float, patch: int) -> None:
        super().__init__()
        steps = backbone.spec.shape[-1]
        count = -(-steps // max(1, patch))
        if patch < 1 or visible_count(count, mask_ratio) == count:
            raise ValueError(f"patch={patch} and mask_ratio={mask_ratio} hide none of the {steps} steps; choose a patch from "
                             f"1 to {steps // 2} steps and a ratio of about 0.4")
        self.mask_ratio, self.patch = mask_ratio, patch
        self.shared_until, self.stages = fork(backbone, shared_until)
        self.rebuild = nn.Conv1d(backbone.num_features, backbone.spec.shape[0], 1)

    def hidden(self, x: Tensor, draw: Draw, length: Tensor | None) -> Tensor:
        """Steps to hide in x (B, C, T), (B, T) bool: the ratio of each row's own patches, one left at least, and the padding."""
        count = -(-x.shape[-1] // self.patch)
        steps = torch.full((len(x),), x.shape[-1], device=x.device) if length is None else length
        own = (steps + self.patch - 1) // self.patch
        order = random_order(draw, count, valid_steps(own, count))
        mask = order.argsort(dim=1) >= (own * (1.0 - self.mask_ratio)).long().clamp_min(1)[:, None]
        return mask.repeat_interleave(self.patch, 1)[:, : x.shape[-1]]

    def forward(self, backbone: Any, x: Tensor, draw: Draw, length: Tensor | None) -> tuple[Tensor, Tensor]:
        """Mean squared error of the hidden values, twice: the loss and the figure to report."""
        hidden = self.hidden(x, draw, length)
        h = x.masked_fill(hidden[:, None], 0.0)
        for stage in (*list(backbone.stages)[: self.shared_until], *self.stages):
            h = stage(h, length)
        valid = valid_steps(length, x.shape[-1])
        error = (self.rebuild(h).float() - x.float()).square().mean(1)
        loss = masked_mean(error, hidden if valid is None else hidden & valid)
        return loss, loss.detach()

    def learning(self, backbone: Any) -> list[nn.Parameter]:
        """What learns at test time: the shared stages and this head."""
        return [p for m in (*list(backbone.stages)[: self.shared_until], self) for p in m.parameters()]


class TestTimeTrainingSeries(TestTimeTraining):
    """Joint training of a classifier and a head that fills in hidden stretches, on shared convolutions.

    Args:
        backbone: convolutional over time, with ``stages``.
        views: kind ``weak`` is used for both tasks.
        num_classes: number of classes.
        shared_until: stages that both heads share; None is all but the last.
        ssl_weight: weight of the reconstruction loss.
        mask_ratio: share of hidden patches, in [0, 1); PatchTST: 0.4.
        patch: time steps of a patch; PatchTST: 12.
        training: optimizer and schedule; see `Method`.
    """

    tags = Tags("Sun et al., ICML 2020, arXiv 1909.13231; task: PatchTST, arXiv 2211.14730", "adaptation",
                modalities=("series",), batch="labeled", target="class", views=("weak",))

    def __init__(self, backbone: Backbone, views: Views, *, num_classes: int, shared_until: int | None = None,
                 ssl_weight: float = 1.0, mask_ratio: float = 0.4, patch: int = 12, **training: Unpack[Training]) -> None:
        Method.__init__(self, backbone, views, **training)
        self.head = nn.Linear(backbone.num_features, num_classes)
        self.pretext = Filling(backbone, shared_until, mask_ratio, patch)
        self.ssl_weight = ssl_weight
