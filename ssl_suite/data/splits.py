"""Which samples are labelled, held out, or mislabelled: pure functions of the targets and a seed."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from sklearn.decomposition import PCA


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


def long_tailed(targets: np.ndarray, ratio: float, seed: int, among: np.ndarray | None = None) -> np.ndarray:
    """Thin the classes out, class c to ``ratio ** (c / (K - 1))`` of the largest (Cui et al., CVPR 2019, arXiv 1901.05555).

    Args:
        targets: class numbers of the whole set, (N,).
        ratio: size of the last class as a share of the first, in (0, 1].
        seed: seed of the choice.
        among: indices to draw from; all by default.

    Returns:
        Sorted indices; at least one and at most all samples of every class.

    Raises:
        ValueError: the ratio lies outside (0, 1].
    """
    if not 0.0 < ratio <= 1.0:
        raise ValueError(f"data.long_tail must lie in (0, 1], got {ratio}")
    pool = np.arange(len(targets)) if among is None else among
    rng = np.random.default_rng((seed, 19))
    members = [pool[targets[pool] == c] for c in np.unique(targets)]
    largest, last = max(len(m) for m in members), max(1, len(members) - 1)
    sizes = [max(1, round(largest * ratio ** (i / last))) for i in range(len(members))]
    return np.sort(np.concatenate([rng.permutation(m)[:size] for m, size in zip(members, sizes, strict=True)]))


def amount(labels: int | float, n: int) -> int:
    """Number of labelled samples among ``n``: the whole number given, or a share in (0, 1) rounded, at least one.

    Raises:
        ValueError: neither of the two.
    """
    number = max(1, round(labels * n)) if isinstance(labels, float) and 0.0 < labels < 1.0 else labels
    if not isinstance(number, int) or not 1 <= number <= n:
        raise ValueError(f"data.labels={labels} must be a whole number between 1 and the {n} samples of the training part, or a "
                         "share of them between 0 and 1: 0.0625 is a sixteenth")
    return number


def selection_bias_pca(x: np.ndarray, targets: np.ndarray, r: float, seed: int, per_class: int | None = None,
                       count: int | float | None = None) -> np.ndarray:
    """Labelled samples that are not typical of their class: drawn with probability proportional to exp(r |z|).

    z is the sample's place on the first principal component of its class, over standardised values (Odonnat et al.,
    AISTATS 2024, arXiv 2310.14814, ``sample_selection_bias.py``). Drawn without replacement by adding Gumbel noise to r |z|
    and taking the largest, which no size of r |z| can overflow.

    Args:
        x: samples to draw from, (N, ...).
        targets: their class numbers, (N,).
        r: strength of the bias; 0 draws uniformly.
        seed: seed of the choice.
        per_class: samples of each class.
        count: samples in all, or their share, classes in proportion; give this or ``per_class``.

    Returns:
        Sorted positions in ``x``.

    Raises:
        ValueError: not exactly one of the two numbers is given, or a class has too few samples.
    """
    if (per_class is None) == (count is None):
        raise ValueError(f"data.selection_bias={r} says which samples are labelled, not how many: give data.labels_per_class "
                         "or data.labels")
    wanted = 0 if count is None else amount(count, len(targets))
    values = x.reshape(len(x), -1).astype(np.float32)
    values = (values - values.mean(0)) / np.maximum(values.std(0), 1e-6)
    rng, chosen = np.random.default_rng((seed, 21)), []
    for c in np.unique(targets):
        members = np.flatnonzero(targets == c)
        size = per_class or max(1, round(wanted * len(members) / len(targets)))
        if size > len(members):
            raise ValueError(f"class {c} has {len(members)} samples, fewer than the {size} labelled ones asked for")
        z = PCA(1, random_state=seed).fit_transform(values[members])[:, 0]
        chosen.append(members[np.argsort(-r * np.abs(z) - rng.gumbel(size=len(members)))[:size]])
    return np.sort(np.concatenate(chosen))


def labelled(targets: np.ndarray | None, among: np.ndarray, seed: int, per_class: int | None = None,
             count: int | float | None = None) -> np.ndarray:
    """Which samples have a label: the same number of each class, so many or such a share of all, or every one; sorted.

    Args:
        targets: class numbers of the whole set, (N,), or None.
        among: indices to draw from.
        seed: seed of the choice.
        per_class: samples of each class.
        count: samples in all, or their share, whatever falls to each class.

    Raises:
        ValueError: both numbers are given, one is out of range, there are too few samples, or there are no classes to balance.
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
    return np.sort(np.random.default_rng((seed, 15)).permutation(among)[: amount(count, len(among))])


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


def asymmetric_noise(targets: np.ndarray, rate: float, mistaken_for: Mapping[int, int], seed: int) -> np.ndarray:
    """Replace exactly ``round(rate * n_c)`` labels of each class c named, by the class it is mistaken for.

    Args:
        targets: class numbers, (N,).
        rate: share of wrong labels in a class named, in [0, 1].
        mistaken_for: class -> class that stands in its place, as ``{3: 5, 5: 3}``; other classes keep their labels.
        seed: seed of the choice.

    Raises:
        ValueError: the rate lies outside [0, 1], or a class is none of the targets'.
    """
    strange = ({*mistaken_for} | {*mistaken_for.values()}) - {*range(int(targets.max()) + 1)}
    if strange:
        raise ValueError(f"data.mistaken_for names class {min(strange)}; classes go from 0 to {targets.max()}")
    if not 0.0 <= rate <= 1.0:
        raise ValueError(f"data.label_noise must lie in [0, 1], got {rate}")
    rng = np.random.default_rng((seed, 23))
    noisy = targets.copy()
    for c, other in mistaken_for.items():
        members = rng.permutation(np.flatnonzero(targets == c))
        noisy[members[: round(rate * len(members))]] = other
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
