"""Orders in which classes arrive: pure functions from labels to places, drawn from a generator."""

from __future__ import annotations

import numpy as np

SLOTS = 100


def by_class(labels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Places of all samples, (N,), class after class; the order of the classes is drawn, that within a class kept."""
    values, numbers = np.unique(labels, return_inverse=True)
    return np.argsort(rng.permutation(len(values))[numbers], kind="stable")


def dirichlet(labels: np.ndarray, delta: float, rng: np.random.Generator) -> np.ndarray:
    """Places of all samples, (N,), in the temporally correlated order of RoTTA (Yuan et al., CVPR 2023, section 4).

    Time has as many slots as there are classes, at most 100. The samples of each class are spread over the slots by a
    draw from Dirichlet(delta, ..., delta); within a slot class comes after class, in an order of the slot's own.

    Args:
        labels: class numbers, (N,).
        delta: concentration; near 0 a class comes all at once, large values give every slot its share of every class.
        rng: source of all draws.
    """
    values = np.unique(labels)
    slots: list[list[np.ndarray]] = [[] for _ in range(min(len(values), SLOTS))]
    for value in values:
        places = np.flatnonzero(labels == value)
        edges = np.cumsum(rng.dirichlet([delta] * len(slots)))[:-1]
        for slot, chunk in zip(slots, np.split(places, (edges * len(places)).astype(np.int64)), strict=True):
            slot.append(chunk)
    return np.concatenate([slot[i] for slot in slots for i in rng.permutation(len(slot))])


def long_tailed(labels: np.ndarray, imbalance: float, rng: np.random.Generator) -> np.ndarray:
    """Places of a part of the samples, in order, whose classes differ in frequency.

    Frequencies fall geometrically from the first class to the last, by ``imbalance`` in all (Cui et al., CVPR 2019);
    which class is frequent is drawn. The largest such part is taken, but at least one sample of each class.

    Args:
        labels: class numbers, (N,).
        imbalance: samples of the most frequent class for each of the rarest, at least 1.
        rng: source of all draws.
    """
    values, counts = np.unique(labels, return_counts=True)
    rank = rng.permutation(len(values))
    share = imbalance ** (-rank / max(1, len(values) - 1))
    wanted = np.maximum(1, np.floor(share * (counts / share).min())).astype(np.int64)
    return np.sort(np.concatenate([np.flatnonzero(labels == v)[:n] for v, n in zip(values, wanted, strict=True)]))
