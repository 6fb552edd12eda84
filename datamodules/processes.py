"""What the loaders must know of the trainer they work for; without one, a single process on the CPU."""

from __future__ import annotations

import lightning as L


def place(trainer: L.Trainer | None) -> tuple[int, int]:
    """Number of this process, and number of processes."""
    return (trainer.global_rank, trainer.world_size) if trainer else (0, 1)


def limited(trainer: L.Trainer | None, steps: int | None) -> int | None:
    """Batches per epoch, with Lightning's limit taken into account so that positions and epochs agree."""
    limit = trainer.limit_train_batches if trainer else None
    return limit if isinstance(limit, int) and limit > 0 else steps
