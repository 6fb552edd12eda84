"""Batch order as a pure function of (seed, epoch), so that a run can be resumed at any batch, on any number of processes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from torch.utils.data import Sampler

Pairs = list[tuple[int, int]]


def epoch_order(indices: np.ndarray, seed: int, epoch: int, size: int) -> np.ndarray:
    """The first ``size`` entries of an endless chain of random orders of ``indices``, (size,)."""
    rounds = -(-size // len(indices))
    orders = [np.random.default_rng((seed, epoch, r)).permutation(indices) for r in range(rounds)]
    return np.concatenate(orders)[:size]


def block_order(indices: np.ndarray, blocks: np.ndarray, seed: int, epoch: int, size: int, mixed: int = 8) -> np.ndarray:
    """As `epoch_order`, but block after block: ``mixed`` random blocks at a time, their samples in random order, (size,).

    Args:
        indices: positions in the data set to draw from.
        blocks: number of the block of every position in the data set.
        seed: seed of the order.
        epoch: number of the epoch.
        size: entries wanted.
        mixed: blocks whose samples are mixed.
    """
    members = np.sort(indices)
    members = members[np.argsort(blocks[members], kind="stable")]
    pieces = np.split(members, np.flatnonzero(np.diff(blocks[members])) + 1)
    orders: list[np.ndarray] = []
    for r in range(-(-size // len(indices))):
        rng = np.random.default_rng((seed, epoch, r))
        shuffled = rng.permutation(len(pieces))
        for first in range(0, len(pieces), mixed):
            orders.append(rng.permutation(np.concatenate([pieces[p] for p in shuffled[first : first + mixed]])))
    return np.concatenate(orders)[:size]


class ShuffledSampler(Sampler[Pairs]):
    """What shuffled batches share: a position counted in batches of the whole run.

    Attributes:
        indices: positions in the data set to draw from.
        seed: seed of the order.
        blocks: block of every position in the data set; None mixes all samples.
        num_batches: batches of this process per epoch.
        position: batches of this process already used in the run; iteration starts there.
    """

    indices: np.ndarray
    seed: int
    blocks: np.ndarray | None = None
    num_batches: int
    position = 0

    def order(self, epoch: int, size: int) -> np.ndarray:
        """The first ``size`` samples of an epoch, (size,)."""
        if self.blocks is None:
            return epoch_order(self.indices, self.seed, epoch, size)
        return block_order(self.indices, self.blocks, self.seed, epoch, size)

    def __len__(self) -> int:
        return self.num_batches

    @property
    def sampler(self) -> ShuffledSampler:
        """Itself: where Lightning looks for `set_epoch` of a batch sampler."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Start at an epoch's first batch, or stay where a resumed run stopped within that epoch."""
        if self.position // self.num_batches != epoch:
            self.position = epoch * self.num_batches


class EpochSampler(ShuffledSampler):
    """Shuffled batches of (epoch, index) pairs.

    The global order does not depend on the number of processes: rank r of W takes the r-th of every W consecutive batches.
    The epoch travels with each sample, so a worker needs no other message to draw the right view of it. Where an epoch goes
    through the samples several times, each time counts as an epoch of its own: a sample never gets the same view twice.

    Args:
        indices: positions in the data set to draw from.
        batch_size: samples per batch and process.
        seed: seed of the order.
        num_batches: batches per epoch and process; None takes every sample once and drops the ragged tail. More batches
            than samples is fine: the order starts again (few labels beside many unlabelled samples).
        rank: number of this process.
        world: number of processes.
        blocks: see `ShuffledSampler`.

    Raises:
        ValueError: no samples, or a batch size below one.
    """

    def __init__(self, indices: Sequence[int] | np.ndarray, batch_size: int, seed: int = 0, num_batches: int | None = None,
                 rank: int = 0, world: int = 1, blocks: np.ndarray | None = None) -> None:
        if len(indices) == 0:
            raise ValueError("there are no samples to draw from; check data.labels_per_class and data.val_fraction")
        if batch_size < 1:
            raise ValueError(f"data.batch_size must be at least 1, got {batch_size}")
        self.indices = np.asarray(indices)
        self.batch_size = min(batch_size, len(self.indices)) if num_batches is None else batch_size
        self.seed, self.rank, self.world, self.blocks = seed, rank, world, blocks
        self.num_batches = num_batches or max(1, len(self.indices) // (self.batch_size * world))

    def __iter__(self) -> Iterator[Pairs]:
        epoch, first = divmod(self.position, self.num_batches)
        size = self.num_batches * self.batch_size * self.world
        order = self.order(epoch, size)
        rounds = -(-size // len(self.indices))
        for batch in range(first, self.num_batches):
            start = (batch * self.world + self.rank) * self.batch_size
            places = range(start, start + self.batch_size)
            yield [(epoch * rounds + place // len(self.indices), int(order[place])) for place in places]


class MixedSampler(ShuffledSampler):
    """Batches put together from several samplers, each of which gives its own part of every batch.

    Args:
        parts: samplers with the same number of batches.

    Raises:
        ValueError: the numbers of batches differ.
    """

    def __init__(self, parts: Sequence[EpochSampler]) -> None:
        if len({len(part) for part in parts}) != 1:
            raise ValueError(f"the parts of a batch must have the same number of batches, got {[len(part) for part in parts]}")
        self.parts, self.num_batches = parts, parts[0].num_batches

    def __iter__(self) -> Iterator[Pairs]:
        for part in self.parts:
            part.position = self.position
        for pieces in zip(*self.parts, strict=True):
            yield [pair for piece in pieces for pair in piece]


class SequentialSampler(Sampler[Pairs]):
    """Batches in order, every sample once, dealt to the processes without padding.

    Args:
        indices: positions in the data set.
        batch_size: samples per batch and process.
        rank: number of this process.
        world: number of processes.
    """

    def __init__(self, indices: Sequence[int] | np.ndarray, batch_size: int, rank: int = 0, world: int = 1) -> None:
        self.indices = np.asarray(indices)[rank::world]
        self.batch_size = batch_size

    def __len__(self) -> int:
        return -(-len(self.indices) // self.batch_size)

    def __iter__(self) -> Iterator[Pairs]:
        for start in range(0, len(self.indices), self.batch_size):
            yield [(0, int(i)) for i in self.indices[start : start + self.batch_size]]


class BucketSampler(ShuffledSampler):
    """Shuffled batches of samples of similar length, each with at most ``frames`` time steps including padding.

    Samples are shuffled, sorted by length within groups, cut into batches and the batches shuffled again, all from
    (seed, epoch). The number of batches differs by a few between epochs, so an epoch is the smallest count seen over the
    first ``probe`` epochs.

    Args:
        indices: positions in the data set.
        lengths: time steps of every sample of the data set.
        frames: time steps a batch may hold, padding included.
        seed: seed of the order.
        group: samples sorted together.
        rank: number of this process.
        world: number of processes.
        blocks: see `ShuffledSampler`.

    Raises:
        ValueError: all samples are equally long, or one alone is longer than ``frames``.
    """

    def __init__(self, indices: Sequence[int] | np.ndarray, lengths: np.ndarray | None, frames: int, seed: int = 0,
                 group: int = 256, rank: int = 0, world: int = 1, blocks: np.ndarray | None = None) -> None:
        if lengths is None:
            raise ValueError("data.frames needs samples of unequal length; set data.frames=null and use data.batch_size")
        self.indices, self.lengths, self.blocks = np.asarray(indices), np.asarray(lengths), blocks
        longest = int(self.lengths[self.indices].max(initial=0))
        if longest > frames:
            raise ValueError(f"the longest sample has {longest} time steps but data.frames is {frames}; raise data.frames")
        self.frames, self.seed, self.group, self.rank, self.world = frames, seed, group, rank, world
        self.num_batches = max(1, min(len(self.batches(epoch)) for epoch in range(4)) // world)

    def batches(self, epoch: int) -> list[np.ndarray]:
        """All batches of an epoch, for all processes."""
        order = self.order(epoch, len(self.indices))
        groups = [order[i : i + self.group] for i in range(0, len(order), self.group)]
        batches: list[np.ndarray] = []
        for members in groups:
            members = members[np.argsort(self.lengths[members], kind="stable")]
            start = 0
            for stop in range(1, len(members) + 1):
                if stop == len(members) or self.lengths[members[stop]] * (stop + 1 - start) > self.frames:
                    batches.append(members[start:stop])
                    start = stop
        shuffle = np.random.default_rng((self.seed, epoch, 1_000_000)).permutation(len(batches))
        return [batches[i] for i in shuffle]

    def __iter__(self) -> Iterator[Pairs]:
        epoch, first = divmod(self.position, self.num_batches)
        batches = self.batches(epoch)
        for batch in range(first, self.num_batches):
            members = batches[(batch * self.world + self.rank) % len(batches)]
            yield [(epoch, int(i)) for i in members]
