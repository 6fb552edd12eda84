"""Views: named recipes of batched operations that run on the device, drawn per sample from (seed, epoch, index)."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ssl_suite.batch import Batch, Spec
from ssl_suite.functional.random import Draw, sample_keys
from ssl_suite.functional.segmentation import to_target


class Op(Protocol):
    """One operation of a view: float samples in, float samples out, of the same shape unless it crops to a size; one draw per row.

    ``length`` holds the valid time steps of padded rows, or is None. An operation that needs neither ignores it. One that can
    serve pictures with masks also says, in ``mask(y, draw)``, what becomes of their targets (B, H, W) under the same draws.
    """

    def __call__(self, x: Tensor, draw: Draw, length: Tensor | None) -> Tensor: ...


def to_float(x: Tensor) -> Tensor:
    """Samples as floats: uint8 pictures to [0, 1], int16 waveforms to [-1, 1], floats unchanged."""
    if x.dtype == torch.uint8:
        return x.float().div_(255.0)
    if x.dtype == torch.int16:
        return x.float().div_(32768.0)
    return x.float()


class Views(nn.Module):
    """What ``weak``, ``strong``, ``crop`` and ``local`` mean for one data set.

    A method asks for kinds by name; every kind is float conversion, the listed operations, then standardisation by the
    data set's channel statistics, so that operations work in natural units ([0, 1] for pictures). The kind ``clean`` is
    always there and has no operations. ``local`` is the small crop of multi-crop methods; its pictures may be smaller.

    Args:
        kinds: operations of each kind, in order.
        seed: seed of the draws.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, kinds: Mapping[str, Sequence[Op]] | None = None, seed: int = 0) -> None:
        super().__init__()
        self.kinds = {"clean": [], **{kind: list(ops) for kind, ops in (kinds or {}).items()}}
        self.seed = seed
        self.register_buffer("mean", torch.zeros(1), persistent=False)
        self.register_buffer("std", torch.ones(1), persistent=False)

    def standardise(self, spec: Spec) -> Views:
        """Take the channel statistics of a data set; returns itself."""
        trailing = (1,) * {"images": 2, "speech": 0, "series": 1}[spec.modality]
        self.mean = torch.tensor(spec.mean).view(-1, *trailing)
        self.std = torch.tensor(spec.std).view(-1, *trailing).clamp_min(1e-6)
        return self

    def draw(self, batch: Batch, stream: int) -> Draw:
        """Random numbers for a batch; methods use streams from 100 up for masks, views those below."""
        index = batch["index"]
        epoch = batch.get("epoch")
        return Draw(sample_keys(self.seed, torch.zeros_like(index) if epoch is None else epoch, index, stream))

    def forward(self, batch: Batch, *kinds: str) -> list[Tensor]:
        """One view of the batch per kind named, each with draws of its own.

        Args:
            batch: needs ``x`` and ``index``; ``epoch`` and ``length`` are used where present.
            kinds: names of kinds; a name may stand twice.

        Returns:
            Float tensors of the shape of ``x``, or of the size that a kind crops to.

        Raises:
            KeyError: a kind is not defined for this data set.
        """
        x = to_float(batch["x"])
        return [self.apply_kind(x, kind, self.draw(batch, i), batch.get("length")) for i, kind in enumerate(kinds)]

    def apply_kind(self, x: Tensor, kind: str, draw: Draw, length: Tensor | None = None) -> Tensor:
        """One kind applied to float samples with the draws given."""
        for op in self.ops(kind):
            x = op(x, draw, length)
        x = (x - self.mean) / self.std
        if length is None:
            return x
        valid = torch.arange(x.shape[-1], device=x.device) < length.view(-1, *(1,) * (x.ndim - 1))
        return x * valid

    def paired(self, batch: Batch, *kinds: str) -> tuple[Tensor, Tensor]:
        """Kinds applied one after the other to pictures, and to their masks where they move or hide something.

        Kind i draws as in a call of the views with the same names, so that ``paired(batch, "weak")`` and ``paired(batch, "weak",
        "strong")`` show every sample in the same place.

        Args:
            batch: pictures ``x`` (B, C, H, W) with ``index``; masks ``y`` (B, H, W) uint8 where present.
            kinds: names of kinds.

        Returns:
            Float pictures, and targets (B, H, W) int64: the class of each pixel, or 0 without masks, and `IGNORE` where the view
            shows nothing of the picture.

        Raises:
            KeyError: a kind is not defined for this data set.
            ValueError: an operation does not say what becomes of a mask.
        """
        x, mask = to_float(batch["x"]), batch.get("y")
        y = x.new_zeros(len(x), *x.shape[2:], dtype=torch.int64) if mask is None else to_target(mask)
        for i, kind in enumerate(kinds):
            draw = self.draw(batch, i)
            for op in self.ops(kind):
                if not hasattr(op, "mask"):
                    raise ValueError(f"the view {kind!r} holds {type(op).__name__}, which does not say what becomes of a mask; "
                                     f"give it a method mask(y, draw), or take it out of data.views.kinds.{kind}")
                y, x = op.mask(y, copy.copy(draw)), op(x, draw, None)
        return (x - self.mean) / self.std, y

    def ops(self, kind: str) -> list[Op]:
        """Operations of a kind."""
        if kind not in self.kinds:
            raise KeyError(f"no view {kind!r} is defined for these data (there are {', '.join(self.kinds)}); "
                           f"define data.views.kinds.{kind}")
        return self.kinds[kind]

    def redraw(self, x: Tensor, kind: str, draw: Draw, length: Tensor | None = None) -> Tensor:
        """One kind applied to samples that are standardised already."""
        return self.apply_kind(x * self.std + self.mean, kind, draw, length)

    def extra_repr(self) -> str:
        def names(ops: Sequence[Any]) -> str:
            return ", ".join(type(op).__name__ for op in ops)

        return "\n".join(f"{kind}: {names(ops)}" for kind, ops in self.kinds.items())
