"""Data sets that come one after the other, for pre-training that goes on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from torch.utils.data import DataLoader

from datamodules.base import SourceDataModule
from datamodules.processes import limited, place
from datamodules.pseudo import mixed_sampler
from ssl_suite.config import ConfigError, nearest
from ssl_suite.data.sources import Indexed, JoinedSource


class ContinualDataModule(SourceDataModule):
    """One data set of a sequence, with some samples of those before it; without labels.

    Parts, views and batches are those of the set at hand. All sets are standardised as the first is, since one model serves them
    all. Samples to replay are drawn once, by the seed of the set at hand.

    Args:
        sets: name -> data module, in the order in which they come.
        at: name of the set at hand.
        replay: share of each batch taken from earlier sets, in [0, 1]; of no effect on the first.
        buffer: training samples kept of each earlier set.

    Raises:
        ValueError: no such set, a share out of range, sets of different samples.
    """

    def __init__(self, sets: Mapping[str, SourceDataModule], *, at: str, replay: float = 0.0, buffer: int = 200) -> None:
        if at not in sets:
            raise ValueError(f"data.at={at} is none of the sets{nearest(at, set(sets))}")
        if not 0.0 <= replay <= 1.0 or buffer < 1:
            raise ValueError(f"data.replay={replay} must lie in [0, 1] and data.buffer={buffer} be at least 1")
        order = list(sets)
        self.now, self.earlier = sets[at], [sets[name] for name in order[: order.index(at)]]
        now = self.now
        super().__init__(batch_size=now.batch_size, num_workers=now.num_workers, seed=now.seed, steps_per_epoch=now.steps_per_epoch)
        if now.frames is not None:
            raise ValueError("a sequence of data sets takes batches of data.batch_size samples; leave data.frames=null")
        self.modality = now.modality  # type: ignore[misc]
        self.views, self.replay, self.buffer = now.views, replay, buffer

    def prepare_data(self) -> None:
        for data in (*self.earlier, self.now):
            data.prepare_data()

    def setup(self, stage: str | None = None) -> None:
        """Read the set at hand and those before it."""
        if self.parts:
            return
        for data in (*self.earlier, self.now):
            data.setup(stage)
        first = (*self.earlier, self.now)[0].spec
        for data in (*self.earlier, self.now):
            if (data.spec.modality, data.spec.shape) != (first.modality, first.shape):
                raise ValueError(f"the first set has {first.modality} of shape {first.shape}, another {data.spec.modality} of "
                                 f"shape {data.spec.shape}; one backbone cannot take both")
        self.joined = JoinedSource([data.parts["train"][0] for data in (self.now, *self.earlier)])
        draw = np.random.default_rng((self.seed, 31))
        kept = [draw.permutation(data.parts["train"][1])[: self.buffer] for data in self.earlier]
        self.old = np.concatenate([np.array([], np.int64), *(k + s for k, s in zip(kept, self.joined.starts[1:], strict=False))])
        self.spec = replace(self.now.spec, mean=first.mean, std=first.std, num_samples=len(self.joined))
        self.views.standardise(self.spec)
        self.labeled, self.targets = self.now.labeled, self.now.targets
        self.parts = self.now.parts

    def split(self) -> dict[str, np.ndarray]:
        return self.now.split()

    def train_dataloader(self) -> DataLoader[Any]:
        """Samples of the set at hand, and of the buffer."""
        if self.form != "unlabeled":
            raise ConfigError("a sequence of data sets has no labels to learn from; take a method of pre-training that needs none")
        rank, world = place(self.trainer)
        sampler = mixed_sampler(self.old, self.parts["train"][1], self.batch_size, self.replay,
                                limited(self.trainer, self.steps_per_epoch), self.seed, rank, world)
        sampler.position = self.position
        self._samplers = [sampler]
        return self._loader(Indexed(self.joined, labeled=False), sampler)
