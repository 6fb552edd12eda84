"""Networks from samples to representations.

All follow one protocol, whatever the modality:

``spec``, ``num_features``     what a sample looks like; width D of a representation
``forward(x, length)``         representation (B, D) of samples that `Views` made float and standard
``tokens(x, length)``          one vector per place, (B, N, D)
``token_lengths(length)``      valid tokens of each row, (B,)

``length`` (B,) says how many time steps of each row exist; None where nothing is padded. Patch transformers add
``patches``, ``embed``, ``positions``, ``encode``, ``layers``, ``pooled``, ``frontend``, ``patch_valid``, ``patch_dim``, ``grid``
and ``num_prefix_tokens``; convolutional nets add ``stages`` and ``pool`` (see `Staged`), so that test-time training can
fork them anywhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from ssl_suite.batch import Spec


def in_sequence(stages: Sequence[nn.Module], x: Tensor, length: Tensor | None) -> Tensor:
    """Pass x through stages."""
    for stage in stages:
        x = stage(x, length)
    return x


@cache
def compiled(**options: Any) -> Any:
    """`in_sequence`, compiled; one for all networks, so that a teacher takes its student's code."""
    return torch.compile(in_sequence, **options)


class Stage(nn.Sequential):
    """Layers in sequence that take ``length`` and need none: pictures are never padded."""

    def forward(self, maps: Tensor, length: Tensor | None = None) -> Tensor:
        """Apply the layers to maps (B, C, ...)."""
        return super().forward(maps)


class Staged(nn.Module):
    """A convolutional backbone: ``forward`` is `pool` of the `stages` in sequence.

    Each is called as ``stage(maps, length)``, with ``length`` always in time steps of the input. A stage holds all of
    its state, so ``copy.deepcopy(backbone.stages[k:])`` is a branch of its own.
    """

    spec: Spec
    num_features: int
    compiled: dict[str, Any] | None = None
    """Options of ``torch.compile`` for `maps`; None runs it as it is."""

    @property
    def stages(self) -> list[nn.Module]:
        """The net cut where its resolution or width changes; concatenating them gives the whole net but its pooling."""
        raise NotImplementedError

    def pool(self, maps: Tensor, length: Tensor | None = None) -> Tensor:
        """Mean over all places of maps (B, D, ...), as (B, D)."""
        return maps.flatten(2).mean(dim=2)

    def maps(self, x: Tensor, length: Tensor | None = None) -> Tensor:
        """What the last stage gives, (B, D, ...)."""
        run = in_sequence if self.compiled is None else compiled(**self.compiled)
        return run(self.stages, x, length)

    def tokens(self, x: Tensor, length: Tensor | None = None) -> Tensor:
        """One vector per place of the last maps in row-major order, (B, N, D)."""
        return self.maps(x, length).flatten(2).transpose(1, 2)

    def forward(self, x: Tensor, length: Tensor | None = None) -> Tensor:
        """Pooled representation, (B, D)."""
        return self.pool(self.maps(x, length), length)
