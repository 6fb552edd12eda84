"""Which samples of a training source are held out, left out, labelled and mislabelled: options that all data modules share."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, TypedDict

import numpy as np

from ssl_suite.data import splits
from ssl_suite.data.sources import Source


class Protocol(TypedDict, total=False):
    """How a data set is split; every data module passes these keywords on.

    Keys:
        val_from: ``random`` holds each class out in proportion; ``end`` holds out the last samples, for data in order of time.
        long_tail: size of the last class as a share of the first, those between by a geometric law; None keeps all samples.
        labels_per_class: labelled samples of each class; None keeps all labels.
        labels: labelled samples in all, or their share of the training part, for transcripts or whatever falls to each class; None
            keeps all labels.
        selection_bias: how much likelier samples far from the middle of their class are to be labelled; None draws uniformly.
        label_noise: share of training labels replaced by a wrong class.
        mistaken_for: class -> the class it is mistaken for; None replaces labels by any other class.
        split_file: ``split.npz`` of a run, which settles all of the above; or a ``.npy`` or ``.txt`` list of labelled samples.
    """

    val_from: Literal["random", "end"]
    long_tail: float | None
    labels_per_class: int | None
    labels: int | float | None
    selection_bias: float | None
    label_noise: float
    mistaken_for: Mapping[int, int] | None
    split_file: str | Path | None


def divide(source: Source, val_fraction: float, seed: int, protocol: Protocol) -> tuple[np.ndarray, np.ndarray]:
    """Kept and held-out positions of a training source, both sorted.

    Args:
        source: the training source.
        val_fraction: share to hold out, in [0, 1).
        seed: seed of the choice.
        protocol: ``val_from``, ``long_tail`` and ``split_file`` are used.

    Raises:
        ValueError: a value is out of range, or needs class labels that these data lack.
    """
    saved = read_split(protocol, source)
    if "train" in saved:
        return saved["train"], saved.get("val", np.arange(0))
    n = len(source)
    if protocol.get("val_from", "random") == "end":
        kept, held = splits.chronological(n, 1.0 - val_fraction) if val_fraction else [np.arange(n), np.arange(0)]
    else:
        kept, held = splits.hold_out(source.targets, n, val_fraction, seed)
    ratio = protocol.get("long_tail")
    if ratio is not None:
        kept = splits.long_tailed(classes(source, "data.long_tail"), ratio, seed, kept)
    return kept, held


def label(source: Source, kept: np.ndarray, num_classes: int, seed: int,
          protocol: Protocol) -> tuple[np.ndarray, np.ndarray | None]:
    """Labelled positions, sorted, and the class numbers (N,) used in training; None without classes.

    Args:
        source: the training source.
        kept: positions to choose from.
        num_classes: number of classes.
        seed: seed of the choice.
        protocol: all but what `divide` uses, and ``split_file``.

    Raises:
        ValueError: a value is out of range, contradicts another, or needs class labels that these data lack; ``split_file`` lists
            samples that are not kept, or holds targets that are no classes of these data.
    """
    saved = read_split(protocol, source)
    per_class, count, bias = protocol.get("labels_per_class"), protocol.get("labels"), protocol.get("selection_bias")
    if per_class is not None and per_class < 1:
        raise ValueError(f"data.labels_per_class must be at least 1, or null to keep all labels, got {per_class}")
    if "labeled" in saved:
        labeled = saved["labeled"]
        if len(strange := np.setdiff1d(labeled, kept)):
            raise ValueError(f"data.split_file={protocol['split_file']} lists {len(strange)} labelled samples that are not trained "
                             f"on, {first_of(strange)}: they are held out (data.val_fraction) or left out (data.long_tail); take "
                             "them off the list, or set data.val_fraction=0 and data.long_tail=null")
    elif bias is None:
        labeled = splits.labelled(source.targets, kept, seed, per_class, count)
    else:
        targets = classes(source, "data.selection_bias")[kept]
        if source.lengths is not None:
            raise ValueError("data.selection_bias compares samples value by value and needs them of equal length")
        labeled = kept[splits.selection_bias_pca(source.fetch(kept)["x"].numpy(), targets, bias, seed, per_class, count)]
    if source.targets is not None and (untaught := sorted({*range(num_classes)} - set(source.targets[labeled].tolist()))):
        warnings.warn(f"no labelled sample is of class {', '.join(map(str, untaught[:5]))}, so it will never be guessed; "
                      "data.labels_per_class gives every class as many", stacklevel=2)
    rate, pairs = protocol.get("label_noise", 0.0), protocol.get("mistaken_for")
    if "targets" in saved:
        return labeled, read_targets(saved["targets"], len(source), num_classes, protocol)
    if source.targets is None or not rate:
        return labeled, source.targets
    if pairs:
        return labeled, splits.asymmetric_noise(source.targets, rate, {int(c): int(other) for c, other in pairs.items()}, seed)
    return labeled, splits.symmetric_noise(source.targets, rate, num_classes, seed)


def classes(source: Source, key: str) -> np.ndarray:
    """Class numbers of a source, or an error that names the option that needs them."""
    if source.targets is None:
        raise ValueError(f"{key} needs class labels and these data have none")
    return source.targets


def first_of(positions: np.ndarray) -> str:
    """The first positions, for a message."""
    return f"first {', '.join(map(str, positions[:5]))}"


def read_targets(targets: np.ndarray, n: int, num_classes: int, protocol: Protocol) -> np.ndarray:
    """The ``targets`` of a ``split_file``, one for each sample; ValueError where they are not."""
    if targets.shape != (n,) or targets.dtype.kind not in "iu":
        raise ValueError(f"data.split_file={protocol['split_file']} holds targets of shape {targets.shape} and type "
                         f"{targets.dtype}; one class number for each of the {n} training samples is needed")
    if len(strange := np.flatnonzero((targets < 0) | (targets >= num_classes))):
        raise ValueError(f"data.split_file={protocol['split_file']} holds {len(strange)} targets that are no class, "
                         f"{first_of(strange)}; the {num_classes} classes are numbered from 0: renumber them, or leave targets out")
    return targets


def read_split(protocol: Protocol, source: Source) -> dict[str, np.ndarray]:
    """What ``split_file`` settles: of ``train``, ``val``, ``labeled`` and ``targets`` those it holds; none without a file.

    Args:
        protocol: ``split_file`` is read; what it settles must be left unset elsewhere.
        source: the training source, whose classes must be those that the split was made for.

    Raises:
        ValueError: the file is empty, contradicts another option or itself, or was made for other data.
        FileNotFoundError: there is no such file.
    """
    if protocol.get("split_file") is None:
        return {}
    path = Path(str(protocol["split_file"]))
    if not path.is_file():
        raise FileNotFoundError(f"data.split_file={path} does not exist; give split.npz of a run, or a .npy or .txt list")
    settled = ["labels_per_class", "labels", "selection_bias"]
    if path.suffix == ".npz":
        saved, settled = dict(np.load(path, allow_pickle=False)), [*settled, "long_tail", "label_noise", "mistaken_for"]
    else:
        listed = np.load(path, allow_pickle=False) if path.suffix == ".npy" else np.loadtxt(path, dtype=np.int64, ndmin=1)
        if not listed.size or listed.dtype.kind not in "iu":
            raise ValueError(f"data.split_file={path} holds {listed.size} values of type {listed.dtype}; list the positions of the "
                             "labelled samples as whole numbers, counted from 0 in the training part of the data")
        saved = {"labeled": np.unique(listed.astype(np.int64))}
    given = [name for name in settled if protocol.get(name)]
    if given:
        raise ValueError(f"data.split_file={path} says already what data.{given[0]} asks for: leave that one unset")
    true = saved.pop("classes", source.targets)
    positions = np.concatenate([saved[name] for name in ("train", "val", "labeled") if name in saved])
    same = true is source.targets or (true is not None and source.targets is not None and np.array_equal(true, source.targets))
    if not same or positions.min(initial=0) < 0 or positions.max(initial=0) >= len(source):
        raise ValueError(f"data.split_file={path} was made for other training samples than these {len(source)}; where the test "
                         "part is drawn at random, it follows data.seed: give that of the run")
    if len(twice := np.intersect1d(saved.get("train", []), saved.get("val", []))):
        raise ValueError(f"data.split_file={path} has {len(twice)} samples both in train and in val, {first_of(twice)}; take them "
                         "out of one of the two")
    return saved
