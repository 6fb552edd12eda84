"""Backbones whose maps say something of every place of a picture: a small U-Net, and DeepLab-V3."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.segmentation import deeplabv3_resnet50

from ssl_suite.backbones import Stage
from ssl_suite.backbones.images import Norm, StagedPictures, conv3x3, norm_layer
from ssl_suite.batch import Spec


class UNetMaps(nn.Module):
    """Maps of the size of the picture, (B, width, H, W).

    On the way down two convolutions and a pooling per level, on the way up the level below, enlarged, beside the level's own.
    """

    def __init__(self, channels: int, width: int, depth: int, norm: Norm) -> None:
        super().__init__()
        widths = [width << level for level in range(depth + 1)]
        inputs = [channels, *widths[:-1]]
        self.down = nn.ModuleList(self.block(before, after, norm) for before, after in zip(inputs, widths, strict=True))
        self.up = nn.ModuleList(self.block(3 * w, w, norm) for w in reversed(widths[:-1]))

    @staticmethod
    def block(inputs: int, outputs: int, norm: Norm) -> nn.Sequential:
        """Two 3x3 convolutions with norm and ReLU."""
        make = norm_layer(norm)
        return nn.Sequential(conv3x3(inputs, outputs), make(outputs), nn.ReLU(inplace=True),
                             conv3x3(outputs, outputs), make(outputs), nn.ReLU(inplace=True))

    def forward(self, x: Tensor, length: Tensor | None = None) -> Tensor:
        """Pictures (B, C, H, W) to maps (B, width, H, W); sides need not be multiples of anything."""
        levels: list[Tensor] = []
        for block in self.down:
            x = block(F.max_pool2d(x, 2, ceil_mode=True) if levels else x)
            levels.append(x)
        for block, level in zip(self.up, reversed(levels[:-1]), strict=True):
            x = block(torch.cat([level, F.interpolate(x, level.shape[2:], mode="bilinear", align_corners=False)], dim=1))
        return x


class UNet(StagedPictures):
    """A small U-Net (Ronneberger et al., MICCAI 2015, arXiv 1505.04597), for pictures of any size on a CPU.

    Convolutions are padded and normed, and enlarging is bilinear, where the paper crops, norms nothing and transposes
    convolutions. It is one stage: what crosses from one side to the other cannot be cut.

    Args:
        spec: what a picture looks like.
        width: channels at the full size, doubled at each halving; also the width D of the maps.
        depth: halvings.
        norm: ``batch`` or ``group`` (8 groups).

    Raises:
        ValueError: unknown norm, a width that 8 groups do not divide, or fewer than one halving.
    """

    stride = 1

    def __init__(self, spec: Spec, *, width: int = 12, depth: int = 3, norm: Norm = "batch") -> None:
        super().__init__()
        if depth < 1 or (norm == "group" and width % 8):
            raise ValueError(f"a U-Net needs depth of at least 1 and, for norm='group', a width that is a multiple of 8; got "
                             f"depth={depth}, width={width}")
        self.spec, self.num_features = spec, width
        self.net = UNetMaps(spec.shape[0], width, depth, norm)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    @property
    def stages(self) -> list[nn.Module]:
        """The whole net."""
        return [self.net]


class DeepLabV3(StagedPictures):
    """torchvision's DeepLab-V3 on a ResNet-50 (Chen et al., arXiv 1706.05587), without its last 1x1 convolution: maps of stride 8.

    Its weights are those of ``deeplabv3_resnet50`` under ``net.``; nothing is downloaded. In training the pooled branch needs
    more than one picture per process.

    Args:
        spec: what a picture looks like; three channels.

    Raises:
        ValueError: the pictures have another number of channels.
    """

    stride = 8

    def __init__(self, spec: Spec) -> None:
        super().__init__()
        if spec.shape[0] != 3:
            raise ValueError(f"DeepLab-V3 takes pictures of three channels, got {spec.shape}; take backbone=unet")
        net = deeplabv3_resnet50(weights=None, weights_backbone=None)
        self.spec, self.num_features = spec, net.classifier[-1].in_channels
        net.classifier = nn.Sequential(*list(net.classifier)[:-1])
        self.net = net
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    @property
    def stages(self) -> list[nn.Module]:
        """Stem, the four residual stages (the last two dilated), and the pyramid of dilated convolutions."""
        body = self.net.backbone
        stem = Stage(body.conv1, body.bn1, body.relu, body.maxpool)
        return [stem, Stage(body.layer1), Stage(body.layer2), Stage(body.layer3), Stage(body.layer4), Stage(*self.net.classifier)]
