"""The newest transitions of a controlled process."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ssl_suite.functional.random import Draw


class Replay(nn.Module):
    """Transitions put together from observations and actions as they come; the oldest makes room for the newest.

    All of it stands in buffers, so that a snapshot covers it.

    Args:
        size: transitions kept.
        shape: shape of an observation.
        actions: numbers A in an action.

    Attributes:
        running: whether there is an observation that the next one follows from.
        last: that observation, (1, ...).
        last_action: what was done then, (1, A).

    Raises:
        ValueError: a size below one.
    """

    running: Tensor
    last: Tensor
    last_action: Tensor
    before: Tensor
    action: Tensor
    after: Tensor
    count: Tensor

    def __init__(self, size: int, shape: Sequence[int], actions: int) -> None:
        super().__init__()
        if size < 1:
            raise ValueError(f"replay={size} must be at least 1, the newest transition")
        self.register_buffer("running", torch.zeros((), dtype=torch.bool))
        self.register_buffer("last", torch.zeros(1, *shape))
        self.register_buffer("last_action", torch.zeros(1, actions))
        self.register_buffer("before", torch.zeros(size, *shape))
        self.register_buffer("action", torch.zeros(size, actions))
        self.register_buffer("after", torch.zeros(size, *shape))
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))

    def begin(self, x: Tensor, action: Tensor) -> None:
        """Remember what is seen, (1, ...), and done, (1, A), in place of what was last."""
        self.last.copy_(x)
        self.last_action.copy_(action)
        self.running.fill_(True)

    def end(self, x: Tensor) -> None:
        """Keep the transition from what was last seen and done to the observation (1, ...)."""
        slot = self.count % len(self.action)
        self.before[slot], self.action[slot], self.after[slot] = self.last[0], self.last_action[0], x[0]
        self.count += 1

    def rows(self, draw: Draw) -> tuple[Tensor, Tensor, Tensor]:
        """Observations, actions and observations after, one transition for each row of the draw, with replacement."""
        chosen = draw.integers(min(int(self.count), len(self.action)))
        return self.before[chosen], self.action[chosen], self.after[chosen]
