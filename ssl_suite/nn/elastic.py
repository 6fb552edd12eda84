"""Smaller transformers that are slices of a large one and share its weights."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from ssl_suite.nn.sharding import gathered

BLOCK = re.compile(r"(?<=blocks\.)\d+(?=\.)")


def kept_blocks(depth: int, total: int) -> list[int]:
    """Which of ``total`` blocks a net of ``depth`` keeps: equally spaced, the first and the last among them."""
    return [i * (total - 1) // max(depth - 1, 1) for i in range(depth)]


def sizes(backbone: Any, smallest: tuple[float, float], favour: float) -> list[tuple[int, int]]:
    """Widths and depths of the slices to draw from, small ones several times; the full size is none of them.

    Widths are all multiples of the width of a head, depths all numbers of blocks. A size stands there round(a b) times, with a
    and b falling from ``favour`` for the smallest width, and depth, to 1 for the largest.

    Args:
        backbone: a patch transformer.
        smallest: width and depth of the smallest, as shares of the backbone's, in (0, 1]; rounded up.
        favour: 1 or more.

    Raises:
        ValueError: a share out of range, ``favour`` below 1, or nothing smaller than the backbone is left.
    """
    if not all(0.0 < share <= 1.0 for share in smallest) or favour < 1.0:
        raise ValueError(f"smallest={tuple(smallest)} must lie in (0, 1], favour={favour} be at least 1")
    total = 1 + max(int(number[0]) for name in backbone.state_dict() if (number := BLOCK.search(name)))
    width, head = backbone.num_features, next(m.head_dim for m in backbone.modules() if hasattr(m, "head_dim"))
    widths = [w for w in range(head, width + 1, head) if w >= smallest[0] * width]
    depths = [d for d in range(1, total + 1) if d >= smallest[1] * total]
    often = [[favour + (1.0 - favour) * i / max(len(of) - 1, 1) for i in range(len(of))] for of in (widths, depths)]
    found = [(w, d) for w, a in zip(widths, often[0], strict=True) for d, b in zip(depths, often[1], strict=True)
             if (w, d) != (width, total) for _ in range(round(a * b))]
    if not found:
        raise ValueError(f"smallest={tuple(smallest)} leaves no size below width {width} and depth {total}; lower it")
    return found


def part(weight: Tensor, shape: torch.Size, name: str) -> Tensor:
    """The first entries of a weight along every axis; of queries, keys and values, those of each.

    A matrix that loses inputs is multiplied by the ratio of inputs, which keeps the size of its outputs (POA, arXiv 2408.01031,
    equation 2, where the inputs are multiplied).

    Args:
        weight: of the large net.
        shape: of the same weight in the small net.
        name: of the weight; one of ``qkv`` holds three blocks of rows.
    """
    if weight.shape == shape:
        return weight
    ratio = weight.shape[1] / shape[1] if weight.ndim == 2 else 1.0
    if ".qkv." in name:
        weight = weight.unflatten(0, (3, -1))[:, :shape[0] // 3].flatten(0, 1)
    return weight[tuple(slice(n) for n in shape)] * ratio


def sub_weights(weights: Mapping[str, Tensor], shapes: Mapping[str, torch.Size], depth: int) -> dict[str, Tensor]:
    """Weights for a smaller net cut out of those of a large one, by name, with gradient to the large ones.

    Args:
        weights: parameters and buffers of the large net, by name.
        shapes: of the weights of a net of the same kind, by name.
        depth: number of its blocks.
    """
    total = 1 + max(int(found[0]) for name in weights if (found := BLOCK.search(name)))
    kept = kept_blocks(depth, total)
    return {name: part(gathered(weights[BLOCK.sub(lambda m: str(kept[int(m[0])]), name)]), shape, name)
            for name, shape in shapes.items()}


def shapes_of(net: nn.Module) -> dict[str, torch.Size]:
    """Shapes of a net's weights, by name."""
    return {name: value.shape for name, value in net.state_dict().items()}


def extract(backbone: Any, width: int, depth: int) -> Any:
    """A net of its own, smaller in width and depth, cut out of a patch transformer.

    Args:
        backbone: a patch transformer (`resized`).
        width: width of its tokens, a multiple of the width of a head.
        depth: number of its blocks.

    Raises:
        ValueError: a size that cannot be cut out of this backbone.
    """
    small = backbone.resized(width, depth)
    with torch.no_grad():
        small.load_state_dict(sub_weights(backbone.state_dict(), shapes_of(small), depth))
    return small.train(backbone.training)


class Slices:
    """Forward passes through slices of a patch transformer; holds their shapes and no weights.

    Args:
        backbone: the whole.
        sizes: widths and depths of the slices.
    """

    def __init__(self, backbone: Any, sizes: Iterable[tuple[int, int]]) -> None:
        with torch.random.fork_rng(devices=[]):
            self.nets: dict[tuple[int, int], nn.Module] = {size: backbone.resized(*size).to("meta") for size in set(sizes)}
        self.shapes = {size: shapes_of(net) for size, net in self.nets.items()}

    def __call__(self, backbone: Any, width: int, depth: int, x: Tensor, length: Tensor | None = None) -> Tensor:
        """Representation (B, width) of samples by a slice of a backbone, with gradient to the backbone's weights."""
        weights = {**dict(backbone.named_parameters()), **dict(backbone.named_buffers())}
        return functional_call(self.nets[width, depth], sub_weights(weights, self.shapes[width, depth], depth), (x, length))
