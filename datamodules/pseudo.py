"""Labels and batches of a training part some of whose samples have pseudo-labels."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ssl_suite.data.pseudo import PseudoLabels, merged_targets
from ssl_suite.data.sampler import EpochSampler, MixedSampler, ShuffledSampler


def read_pseudo_labels(path: str | Path, pool: np.ndarray, targets: np.ndarray | None,
                       num_classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Indices of the samples whose pseudo-labels are believed, sorted, and the targets of all samples.

    Args:
        path: file of `ssl_suite.data.pseudo.PseudoLabels`.
        pool: indices of the training part.
        targets: given labels of the whole data set, (N,).
        num_classes: number of classes.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file does not fit the data, or the data have no classes.
    """
    if targets is None or not num_classes:
        raise ValueError(f"data.pseudo_labels={path}: these data have no classes")
    labels = PseudoLabels.load(path).believed(pool, num_classes)
    return np.sort(labels.index), merged_targets(labels, targets, num_classes)


def mixed_sampler(given: np.ndarray, pseudo: np.ndarray, batch_size: int, share: float, steps: int | None, seed: int, rank: int,
                  world: int) -> ShuffledSampler:
    """Batches of which a fixed share has given labels and the rest pseudo-labels; an epoch is one pass over the latter.

    Args:
        given: samples with a given label.
        pseudo: samples with a pseudo-label.
        batch_size: samples of a batch.
        share: share of the given labels; without any, or with a share of 0, all samples are pseudo-labelled ones.
        steps: batches per epoch; None for one pass over the pseudo-labels.
        seed: seed of the order.
        rank: number of this process.
        world: number of processes.
    """
    number = round(share * batch_size) if len(given) else 0
    if number in (0, batch_size):
        return EpochSampler(given if number else pseudo, batch_size, seed, steps, rank, world)
    steps = steps or max(1, len(pseudo) // ((batch_size - number) * world))
    return MixedSampler([EpochSampler(given, number, seed, steps, rank, world),
                         EpochSampler(pseudo, batch_size - number, seed, steps, rank, world)])
