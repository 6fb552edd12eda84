"""Projection and prediction heads."""

from __future__ import annotations

import itertools

import torch.nn.functional as F
from torch import Tensor, nn

from ssl_suite.functional.prototypes import similarity
from ssl_suite.nn.transformer import init_transformer


def mlp(inputs: int, hidden: int, outputs: int, *, layers: int = 2, norm: bool = True,
        last_norm: bool = False) -> nn.Sequential:
    """Linear layers with BatchNorm and ReLU between them: the head of SimCLR, BYOL, VICReg and their kin.

    Args:
        inputs: width of the input.
        hidden: width of the hidden layers.
        outputs: width of the output.
        layers: number of linear layers; 1 is a plain linear map.
        norm: BatchNorm after each hidden layer, which then has no bias.
        last_norm: BatchNorm without scale and shift after the last layer too (SimSiam and MoCo v3 have it).

    Returns:
        A module that maps (B, inputs) to (B, outputs).

    Raises:
        ValueError: fewer than one layer.
    """
    if layers < 1:
        raise ValueError(f"a head needs at least one layer, got layers={layers}")
    widths = [inputs, *[hidden] * (layers - 1)]
    modules: list[nn.Module] = []
    for before, after in itertools.pairwise(widths):
        modules.append(nn.Linear(before, after, bias=not norm))
        modules += [nn.BatchNorm1d(after), nn.ReLU(inplace=True)] if norm else [nn.ReLU(inplace=True)]
    modules.append(nn.Linear(widths[-1], outputs, bias=not last_norm))
    return nn.Sequential(*modules, *([nn.BatchNorm1d(outputs, affine=False)] if last_norm else []))


class PrototypeHead(nn.Module):
    """The head of DINO and its kin (arXiv 2104.14294, appendix C): a perceptron, then cosines with prototypes.

    Prototypes get unit length inside the forward pass, which is what weight normalisation with a fixed length of 1 does; but
    unlike a weight-normalised layer, the head can be copied for a teacher and sharded.

    Args:
        inputs: width of the input.
        hidden: width of the two hidden layers.
        bottleneck: width in which embeddings and prototypes are compared.
        prototypes: number of prototypes K.
        norm: BatchNorm after the hidden layers, over all that a call holds.
    """

    def __init__(self, inputs: int, hidden: int, bottleneck: int, prototypes: int, norm: bool = False) -> None:
        super().__init__()
        modules: list[nn.Module] = []
        for width in (inputs, hidden):
            modules += [nn.Linear(width, hidden), *([nn.BatchNorm1d(hidden)] if norm else []), nn.GELU()]
        self.body = nn.Sequential(*modules, nn.Linear(hidden, bottleneck))
        self.prototypes = nn.Linear(bottleneck, prototypes, bias=False)
        self.apply(init_transformer)

    def forward(self, h: Tensor) -> Tensor:
        """Cosines (..., K) float32 of representations (..., D)."""
        return similarity(self.body(h.flatten(0, -2)).unflatten(0, h.shape[:-1]), self.prototypes.weight)


class PixelHead(nn.Conv2d):
    """A linear classifier of every place of a map; its logits are enlarged bilinearly to the picture.

    Args:
        inputs: width of the maps.
        outputs: number of classes K.
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, 1)

    def forward(self, maps: Tensor, x: Tensor) -> Tensor:  # type: ignore[override]
        """Logits (B, K, H, W) from maps (B, D, h, w) of pictures x (B, C, H, W)."""
        logits = super().forward(maps)
        return logits if maps.shape[2:] == x.shape[2:] else F.interpolate(logits, x.shape[2:], mode="bilinear", align_corners=False)
