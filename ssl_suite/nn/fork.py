"""Lower layers of networks: alone, or shared by two."""

from __future__ import annotations

import copy
from typing import Any, Literal

Shared = int | Literal["all", "none"]


def lower(backbone: Any, count: Shared) -> list[Any]:
    """A network's first stages: a number of its ``stages``, ``none`` of them, or ``all`` of the network, which is itself.

    Raises:
        ValueError: a number outside of the backbone's stages, or another word.
    """
    if count == "all":
        return [backbone]
    stages = list(getattr(backbone, "stages", ()))
    if count != "none" and (not isinstance(count, int) or not 0 < count <= len(stages)):
        raise ValueError(f"shared or stages={count!r} must be 'all', 'none' or a number between 1 and the {len(stages)} stages of "
                         f"{type(backbone).__name__}")
    return [] if count == "none" else stages[:count]


def fork(backbone: Any, shared: Shared) -> Any:
    """A whole network that has its lower stages in common with another, and copies of all that lies above.

    The stages in common are the same modules, statistics included; a deep copy of what holds both keeps them so.

    Args:
        backbone: the other.
        shared: stages in common, as in `lower`; ``all`` gives the backbone itself.
    """
    return copy.deepcopy(backbone, {id(m): m for part in lower(backbone, shared) for m in part.modules()})
