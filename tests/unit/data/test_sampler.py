"""Order of batches: each sample once, whatever the number of processes, from any position."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from lightning.fabric.utilities.data import _set_sampler_epoch
from torch.utils.data import DataLoader, DistributedSampler

from ssl_suite.data.sampler import BucketSampler, EpochSampler, SequentialSampler, block_order

INDICES = np.arange(100, 197)


def epoch_of(make: type, world: int, position: int = 0, **kwargs: object) -> list[list[list[tuple[int, int]]]]:
    """Batches of every process."""
    ranks = []
    for rank in range(world):
        sampler = make(INDICES, rank=rank, world=world, **kwargs)
        if position:
            sampler.position = position
        ranks.append(list(sampler))
    return ranks


def twice_and_never(first: list[EpochSampler], then: list[EpochSampler], position: int) -> tuple[int, int]:
    """Samples of the first epoch seen twice, and never, where all processes of ``then`` go on from those of ``first``."""
    seen = [i for sampler in first for batch in itertools.islice(sampler, position) for _, i in batch]
    for sampler in then:
        sampler.position = position
        seen += [i for batch in sampler for epoch, i in batch if epoch == 0]
    return len(seen) - len(set(seen)), len(set(first[0].indices.tolist()) - set(seen))


@pytest.mark.parametrize("world", [1, 2, 3, 4])
def test_each_sample_once_per_epoch(world: int) -> None:
    ranks = epoch_of(EpochSampler, world, batch_size=6)
    assert len({len(batches) for batches in ranks}) == 1, "processes must have the same number of batches"
    seen = [index for batches in ranks for batch in batches for _, index in batch]
    assert len(set(seen)) == len(seen)
    assert set(seen) <= set(INDICES.tolist())
    assert len(INDICES) - len(seen) < 6 * world, "more than the ragged tail was dropped"


@pytest.mark.parametrize("world", [2, 3, 4])
def test_global_order_does_not_depend_on_the_number_of_processes(world: int) -> None:
    single = [i for batch in epoch_of(EpochSampler, 1, batch_size=6 * world)[0] for _, i in batch]
    ranks = epoch_of(EpochSampler, world, batch_size=6)
    together = [i for batches in zip(*ranks, strict=True) for batch in batches for _, i in batch]
    assert together == single


def test_epochs_differ_and_repeat() -> None:
    sampler = EpochSampler(INDICES, 8, seed=3)
    first = list(sampler)
    assert list(sampler) == first
    sampler.position = len(sampler)
    second = list(sampler)
    assert {e for batch in second for e, _ in batch} == {1}
    assert [i for b in second for _, i in b] != [i for b in first for _, i in b]
    assert list(EpochSampler(INDICES, 8, seed=4)) != first


@pytest.mark.parametrize("position", [0, 1, 7, 11, 12, 13, 25])
def test_position_seeks_into_the_run(position: int) -> None:
    sampler = EpochSampler(INDICES, 8)
    assert len(sampler) == 12
    run = []
    for epoch in range(3):
        sampler.position = 12 * epoch
        run += list(sampler)
    sampler.position = position
    rest = list(sampler)
    assert rest == run[position:12 * (position // 12 + 1)]
    assert len(sampler) == 12, "the length is that of an epoch, wherever it starts"


@pytest.mark.parametrize("make", [lambda: EpochSampler(INDICES, 8), lambda: bucket()])
def test_lightning_tells_the_epoch(make) -> None:
    sampler, whole = make(), make()
    _set_sampler_epoch(DataLoader(range(200), batch_sampler=sampler), 2)  # what Lightning does before each epoch
    whole.position = 2 * len(whole)
    assert list(sampler) == list(whole)
    sampler.position = 2 * len(sampler) + 3
    sampler.set_epoch(2)
    assert sampler.position == 2 * len(sampler) + 3, "a resumed run stays where it stopped"


def test_few_labels_start_again_evenly() -> None:
    sampler = EpochSampler(INDICES[:10], 4, num_batches=12)
    seen = [i for batch in sampler for _, i in batch]
    counts = np.bincount(np.array(seen) - 100, minlength=10)
    assert len(seen) == 48
    assert counts.max() - counts.min() <= 1


def test_bad_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="no samples"):
        EpochSampler([], 4)
    with pytest.raises(ValueError, match="batch_size"):
        EpochSampler(INDICES, 0)


@pytest.mark.parametrize("world", [1, 2, 3, 4])
def test_sequential_shows_everything_once_without_padding(world: int) -> None:
    seen = [i for batches in epoch_of(SequentialSampler, world, batch_size=7) for batch in batches for _, i in batch]
    assert sorted(seen) == INDICES.tolist()
    for rank in range(world):
        sampler = SequentialSampler(INDICES, 7, rank, world)
        assert len(list(sampler)) == len(sampler)


@pytest.mark.parametrize("world", [2, 3, 4])
def test_control_pytorch_pads_and_shows_samples_twice(world: int) -> None:
    seen = [i for rank in range(world) for i in DistributedSampler(range(97), world, rank, shuffle=False)]  # type: ignore[arg-type]
    assert len(seen) - len(set(seen)) == -97 % world > 0


LENGTHS = np.random.default_rng(0).integers(20, 200, 400)


def bucket(world: int = 1, rank: int = 0, frames: int = 1000, group: int = 64) -> BucketSampler:
    return BucketSampler(np.arange(400), LENGTHS, frames, seed=1, group=group, rank=rank, world=world)


@pytest.mark.parametrize("frames", [200, 1000, 5000])
def test_batches_keep_the_budget(frames: int) -> None:
    for batch in bucket(frames=frames):
        members = [i for _, i in batch]
        assert len(members) * LENGTHS[members].max() <= frames


@pytest.mark.parametrize("world", [1, 2, 3, 4])
def test_buckets_show_each_sample_at_most_once(world: int) -> None:
    ranks = [list(bucket(world, rank)) for rank in range(world)]
    assert len({len(batches) for batches in ranks}) == 1
    seen = [i for batches in ranks for batch in batches for _, i in batch]
    assert len(set(seen)) == len(seen)
    assert len(seen) > 0.9 * 400


def test_buckets_do_not_depend_on_the_number_of_processes() -> None:
    single = list(bucket())
    two = list(itertools.chain(*zip(bucket(2, 0), bucket(2, 1), strict=True)))
    assert two == single[:len(two)]


def test_buckets_waste_less_than_shuffling() -> None:
    def padding(batches: list[list[int]]) -> float:
        padded = sum(len(b) * LENGTHS[b].max() for b in batches)
        return 1 - sum(LENGTHS[b].sum() for b in batches) / padded

    order = np.random.default_rng(2).permutation(400)
    shuffled = padding([list(order[i:i + 8]) for i in range(0, 400, 8)])
    assert padding([[i for _, i in b] for b in bucket()]) < 0.6 * shuffled


def test_buckets_seek() -> None:
    sampler = bucket()
    first = list(sampler)
    sampler.position = 5
    assert list(sampler) == first[5:]
    sampler.position = len(sampler)
    assert {e for batch in sampler for e, _ in batch} == {1}


def test_one_sample_above_the_budget_is_refused() -> None:
    with pytest.raises(ValueError, match=r"data\.frames"):
        bucket(frames=150)


def test_a_sample_seen_again_within_an_epoch_counts_as_a_new_one() -> None:
    """Four labels drawn eighty times in an epoch must not get the same view eighty times."""
    sampler = EpochSampler(np.arange(4), batch_size=3, num_batches=8)
    pairs = [pair for batch in sampler for pair in batch]
    sampler.position = len(sampler)
    pairs += [pair for batch in sampler for pair in batch]
    assert len(set(pairs)) == len(pairs)


def test_blocks_are_gone_through_a_few_at_a_time() -> None:
    blocks, indices = np.arange(400) // 10, np.arange(0, 400, 2)
    order = block_order(indices, blocks, 0, 0, 200)
    assert sorted(order.tolist()) == indices.tolist()
    groups = [set(blocks[order[i:i + 40]].tolist()) for i in range(0, 200, 40)]
    assert all(len(group) == 8 for group in groups)
    assert not set.intersection(*groups)
    assert len(set(blocks[order[:16]].tolist())) > 4, "the blocks of a group are mixed"
    assert order.tolist() != block_order(indices, blocks, 0, 1, 200).tolist()
    assert order.tolist() == block_order(indices[::-1], blocks, 0, 0, 200).tolist()
    assert len(block_order(indices, blocks, 0, 0, 500)) == 500


@pytest.mark.parametrize("world", [1, 2])
def test_blocks_change_the_order_alone(world: int) -> None:
    blocks, lengths = np.arange(96) // 5, 10 + np.arange(96) % 7
    for make in (lambda rank: EpochSampler(np.arange(96), 4, rank=rank, world=world, blocks=blocks),
                 lambda rank: BucketSampler(np.arange(96), lengths, 64, group=16, rank=rank, world=world, blocks=blocks)):
        samplers = [make(rank) for rank in range(world)]
        seen = [pair for sampler in samplers for batch in sampler for pair in batch]
        assert len(set(seen)) == len(seen)
        assert len(seen) > 80
        resumed = make(0)
        resumed.position = 2
        assert list(resumed) == list(samplers[0])[2:]
