"""Arithmetic of masks: a class for every pixel, and pixels that do not count."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_suite.functional.distributed import mean_over_processes

VOID = 255
"""What stands in a mask (uint8) where no class is to be learnt or judged."""
IGNORE = -100
"""What becomes of it in a target (int64): the number that PyTorch's losses leave out."""


def to_target(mask: Tensor) -> Tensor:
    """Masks (B, H, W) uint8 as targets of a loss, int64, with `IGNORE` where there was `VOID`."""
    return mask.long().masked_fill_(mask == VOID, IGNORE)


def to_rows(maps: Tensor) -> Tensor:
    """Maps (B, K, H, W) as one row per pixel, (B * H * W, K), in the order of a mask laid flat."""
    return maps.movedim(1, -1).flatten(0, -2)


def masked_mean(values: Tensor, weight: Tensor, count: Tensor) -> Tensor:
    """sum(values * weight) / number of places that count; over processes as over one of them with all places.

    Args:
        values: of any shape.
        weight: of the same shape; 0 drops a place from the sum.
        count: True where a place belongs to the number that divides.

    Returns:
        Scalar; 0 where nothing counts.
    """
    number = mean_over_processes(count.sum().to(values.dtype)).clamp(min=1.0)
    return (values * weight * count).sum() / number


def pixel_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy averaged over the pixels that count.

    Args:
        logits: (B, K, H, W).
        target: classes, (B, H, W) int64, `IGNORE` where none is to be learnt.

    Returns:
        Scalar; 0 where every pixel is ignored.
    """
    loss = F.cross_entropy(logits, target, ignore_index=IGNORE, reduction="none")
    return masked_mean(loss, torch.ones_like(loss), target != IGNORE)


def confusion(predicted: Tensor, target: Tensor, num_classes: int) -> Tensor:
    """How many pixels of class i (row) are predicted as class j (column), (K, K) int64.

    Args:
        predicted: classes, of any shape.
        target: classes of the same shape, `IGNORE` where none is judged.
        num_classes: number of classes K.
    """
    counts = target != IGNORE
    return torch.bincount(target[counts] * num_classes + predicted[counts], minlength=num_classes**2).view(num_classes, -1)


def iou_sums(logits: Tensor, target: Tensor, names: Sequence[str]) -> dict[str, tuple[Tensor, int]]:
    """Intersection and union of each class, to be summed over a set: ``iou_NAME`` -> (intersection, union).

    Sums of both, divided at the end, give the IoU of the set as one picture (Everingham et al., PASCAL VOC); a mean of the
    batches' own IoUs would depend on the batches.

    Args:
        logits: (B, K, H, W).
        target: classes, (B, H, W), `IGNORE` where none is judged.
        names: names of the classes, K of them.
    """
    matrix = confusion(logits.argmax(1), target, len(names))
    both, union = matrix.diagonal(), matrix.sum(0) + matrix.sum(1) - matrix.diagonal()
    return {f"iou_{name}": (both[c], count) for c, (name, count) in enumerate(zip(names, union.tolist(), strict=True))}


def averaged_probs(predict: Callable[[Tensor], Tensor], x: Tensor, scales: Sequence[float] = (0.5, 0.75, 1.0, 1.5, 2.0)) -> Tensor:
    """Mean probabilities over sizes of a picture and over both of its mirror images, as ST++ guesses (arXiv 2106.05095).

    Args:
        predict: logits (B, K, h, w) of pictures (B, C, h, w).
        x: pictures, (B, C, H, W).
        scales: factors on the sides.

    Returns:
        Probabilities, (B, K, H, W).
    """
    total = None
    for scale in scales:
        size = [max(1, round(scale * side)) for side in x.shape[2:]]
        scaled = F.interpolate(x, size, mode="bilinear", align_corners=False, antialias=scale < 1)
        for turned in (False, True):
            logits = predict(scaled.flip(3)).flip(3) if turned else predict(scaled)
            probs = F.interpolate(logits.float().softmax(1), x.shape[2:], mode="bilinear", align_corners=False)
            total = probs if total is None else total + probs
    assert total is not None, "at least one scale is needed"
    return total / (2 * len(scales))


def agreement(one: Tensor, other: Tensor, num_classes: int) -> Tensor:
    """Mean IoU of two masks of each picture, over the classes that stand in either, (B,): how stable a guess is (ST++).

    Args:
        one: classes, (B, H, W) int64.
        other: likewise.
        num_classes: number of classes K.
    """
    a, b = (F.one_hot(mask, num_classes).flatten(1, 2).bool() for mask in (one, other))
    both, either = (a & b).sum(1), (a | b).sum(1)
    return (both / either.clamp(min=1)).sum(1) / (either > 0).sum(1)
