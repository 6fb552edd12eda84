"""Which samples are labelled, held out, or mislabelled: pure functions of the targets and a seed."""

from __future__ import annotations

import numpy as np


def hold_out(targets: np.ndarray | None, n: int, fraction: float, seed: int,
             name: str = "data.val_fraction") -> tuple[np.ndarray, np.ndarray]:
    """Split 0..n-1 into kept and held-out indices, each class in proportion where there are targets.

    Args:
        targets: class numbers, (n,), or None.
        n: number of samples.
        fraction: share to hold out, in [0, 1).
        seed: seed of the choice.
        name: key of the fraction, for the message.

    Returns:
        Kept and held-out indices, both sorted.

    Raises:
        ValueError: the fraction lies outside [0, 1).
    """
    if not 0.0 <= fraction < 1.0:
        raise ValueError(f"{name} must lie in [0, 1), got {fraction}")
    rng = np.random.default_rng((seed, 11))
    groups = [np.arange(n)] if targets is None else [np.flatnonzero(targets == c) for c in np.unique(targets)]
    held = np.concatenate([rng.permutation(group)[: round(len(group) * fraction)] for group in groups])
    held = np.sort(held).astype(np.int64)
    return np.setdiff1d(np.arange(n), held), held


def class_balanced(targets: np.ndarray, per_class: int, seed: int, among: np.ndarray | None = None) -> np.ndarray:
    """The same number of samples of every class, drawn without replacement.

    Args:
        targets: class numbers of the whole set, (N,).
        per_class: samples of each class.
        seed: seed of the choice; the same seed gives the same split everywhere.
        among: indices to draw from; all by default.

    Returns:
        Sorted indices, (per_class * K,).

    Raises:
        ValueError: a class has fewer samples than asked for.
    """
    pool = np.arange(len(targets)) if among is None else among
    rng = np.random.default_rng((seed, 13))
    chosen = []
    for c in np.unique(targets):
        members = pool[targets[pool] == c]
        if len(members) < per_class:
            raise ValueError(f"class {c} has {len(members)} samples, fewer than data.labels_per_class={per_class}")
        chosen.append(rng.permutation(members)[:per_class])
    return np.sort(np.concatenate(chosen))


def labelled(targets: np.ndarray | None, among: np.ndarray, seed: int, per_class: int | None = None,
             count: int | None = None) -> np.ndarray:
    """Which samples have a label: the same number of each class, so many in all, or every one; sorted.

    Args:
        targets: class numbers of the whole set, (N,), or None.
        among: indices to draw from.
        seed: seed of the choice.
        per_class: samples of each class.
        count: samples in all, whatever falls to each class.

    Raises:
        ValueError: both numbers are given, there are too few samples, or there are no classes to balance.
    """
    if per_class is not None and count is not None:
        raise ValueError(f"data.labels_per_class={per_class} and data.labels={count}: give one of them")
    if per_class is not None:
        if targets is None:
            raise ValueError(f"data.labels_per_class={per_class} needs class labels and these data have none; for transcripts "
                             "take data.labels, the number in all")
        return class_balanced(targets, per_class, seed, among)
    if count is None:
        return among
    if not 1 <= count <= len(among):
        raise ValueError(f"data.labels={count} must lie between 1 and the {len(among)} samples of the training part")
    return np.sort(np.random.default_rng((seed, 15)).permutation(among)[:count])


def symmetric_noise(targets: np.ndarray, rate: float, num_classes: int, seed: int) -> np.ndarray:
    """Replace exactly ``round(rate * N)`` labels, each by one of the other classes with equal probability.

    Raises:
        ValueError: the rate lies outside [0, 1].
    """
    if not 0.0 <= rate <= 1.0:
        raise ValueError(f"data.label_noise must lie in [0, 1], got {rate}")
    rng = np.random.default_rng((seed, 17))
    noisy = targets.copy()
    wrong = rng.permutation(len(targets))[: round(rate * len(targets))]
    noisy[wrong] = (noisy[wrong] + rng.integers(1, num_classes, len(wrong))) % num_classes
    return noisy


def chronological(n: int, *shares: float) -> list[np.ndarray]:
    """Cut 0..n-1 into consecutive parts, for rows in order of time.

    Args:
        n: number of rows.
        shares: share of each part but the last, which gets the rest: ``chronological(n, 0.3, 0.3)`` is 30/30/40.

    Raises:
        ValueError: a share is negative, or they leave nothing for the last part.
    """
    if min(shares, default=0.0) < 0.0 or sum(shares) >= 1.0:
        raise ValueError(f"the shares of all parts but the last must be at least 0 and sum to less than 1, got {shares}")
    return np.split(np.arange(n), [int(n * end + 1e-9) for end in np.cumsum(shares)])
