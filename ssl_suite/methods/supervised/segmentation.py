"""Segmenter: a 1x1 convolution on the maps of a backbone; the supervised baseline for masks.

Idea: a class for every pixel, learnt from pictures that were drawn over by hand.

Paper: none for the baseline; Long et al., CVPR 2015, arXiv 1411.4038, is where it comes from. Scores are the IoU of each class
from one confusion matrix over the whole set, and their mean.

Deviations: none to speak of. Logits of a backbone whose maps are smaller than the picture are enlarged bilinearly, as torchvision
does.

Batch: ``x`` (B, C, H, W), ``y`` (B, H, W) uint8 with 255 where no class counts, ``index`` (B,), with ``epoch`` where present.

Known limits: pictures and masks of a batch have one size. A class that is in no picture has no IoU and is left out of the mean.
"""

from __future__ import annotations

from typing import Unpack

from torch import Tensor

from ssl_suite.batch import Backbone, Batch, StepOutput, Tags
from ssl_suite.functional.segmentation import pixel_loss
from ssl_suite.method import Method, Training
from ssl_suite.nn.heads import PixelHead
from ssl_suite.views import Views


class Segmenter(Method):
    """Cross-entropy on the pixels of labelled pictures.

    Args:
        backbone: one with maps, fresh or pre-trained.
        views: kind ``weak`` is used for training, on picture and mask alike.
        num_classes: number of classes.
        training: optimizer and schedule; see `Method`.
    """

    tags = Tags("none (supervised baseline for masks)", "supervised", modalities=("images",), batch="labeled", backbone="maps",
                views=("weak",), target="mask")

    def __init__(self, backbone: Backbone, views: Views, *, num_classes: int, **training: Unpack[Training]) -> None:
        super().__init__(backbone, views, **training)
        self.head = PixelHead(backbone.num_features, num_classes)

    def step(self, batch: Batch) -> StepOutput:
        x, y = self.views.paired(batch, "weak")
        maps = self.backbone.maps(x)
        return StepOutput(pixel_loss(self.head(maps, x), y), features=maps.detach().mean((2, 3)))

    def logits(self, batch: Batch) -> Tensor:
        x = self.views(batch, "clean")[0]
        return self.head(self.backbone.maps(x), x)
