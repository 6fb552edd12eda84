"""Networks that share their lower layers."""

from __future__ import annotations

import copy
from typing import Any, Literal

Shared = int | Literal["all", "none"]


def fork(backbone: Any, shared: Shared) -> Any:
    """A whole network that has its lower stages in common with another, and copies of all that lies above.

    The stages in common are the same modules, statistics included; a deep copy of what holds both keeps them so.

    Args:
        backbone: the other; has ``stages`` where a number is given.
        shared: number of stages in common; ``all`` gives the backbone itself, ``none`` a copy.

    Raises:
        ValueError: a number outside of the backbone's stages, or another word.
    """
    if shared == "all":
        return backbone
    stages = list(getattr(backbone, "stages", ()))
    count = 0 if shared == "none" else shared
    if shared != "none" and (not isinstance(count, int) or not 0 < count <= len(stages)):
        raise ValueError(f"shared={shared!r} must be 'all', 'none' or a number between 1 and the {len(stages)} stages of "
                         f"{type(backbone).__name__}")
    common = [m for stage in stages[:count] for m in stage.modules()]
    return copy.deepcopy(backbone, {id(m): m for m in common})
