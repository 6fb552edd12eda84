"""Pseudo-labels on disk: what a model said of samples without a label, and which of it is believed."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from zipfile import BadZipFile

import numpy as np

from ssl_suite.io.checkpoints import whole_file

KEYS = ("index", "target", "confidence", "kept", "weight")


@dataclass(frozen=True)
class PseudoLabels:
    """Guessed labels of M samples of a training part.

    Attributes:
        index: position of each sample in the data set, (M,) int64, each once.
        target: class, (M,) int64; or probabilities of the classes, (M, K) float32.
        confidence: highest probability of each sample, (M,) float32.
        kept: whether the label is to be learned from, (M,) bool.
        weight: weight of the sample in the loss, (M,) float32, none below 0.
    """

    index: np.ndarray
    target: np.ndarray
    confidence: np.ndarray
    kept: np.ndarray
    weight: np.ndarray

    def save(self, path: Path) -> None:
        """Write an ``.npz`` file that is complete or not there."""
        with whole_file(path) as file:
            np.savez(file, **asdict(self))

    @classmethod
    def load(cls, path: str | Path) -> PseudoLabels:
        """Read what `save` wrote; ``kept`` and ``weight`` may be absent in a file of another maker, and are 1 then.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: the file is no archive of arrays or lacks one.
        """
        if not Path(path).is_file():
            raise FileNotFoundError(f"data.pseudo_labels={path}: there is no such file")
        try:
            with np.load(path) as archive:
                arrays = {key: archive[key] for key in KEYS if key in archive}
        except (BadZipFile, ValueError, EOFError, OSError, AttributeError, TypeError) as error:
            raise ValueError(f"data.pseudo_labels={path} is no archive of arrays ({error}); write it with np.savez") from error
        if missing := sorted({"index", "target"} - arrays.keys()):
            raise ValueError(f"data.pseudo_labels={path} lacks {', '.join(missing)}; it needs index (M,) and target (M,) or (M, K)")
        ones = np.ones(len(arrays["index"]), np.float32)
        return cls(**{"confidence": ones, "kept": ones.astype(bool), "weight": ones, **arrays})

    def believed(self, pool: np.ndarray, num_classes: int) -> PseudoLabels:
        """The kept ones, checked against the data they are for.

        Args:
            pool: indices of the training part.
            num_classes: number of classes K.

        Raises:
            ValueError: arrays of different lengths, a sample named twice or from outside the training part, a label outside
                the classes, a weight below 0, or none kept.
        """
        if len({len(array) for array in asdict(self).values()}) != 1:
            sizes = ", ".join(f"{key} {len(array)}" for key, array in asdict(self).items())
            raise ValueError(f"data.pseudo_labels: the arrays differ in length ({sizes})")
        rows = np.flatnonzero(self.kept)
        if not len(rows):
            raise ValueError(f"data.pseudo_labels keeps none of its {len(self.index)} labels; lower the threshold, or train "
                             "without the file")
        chosen = PseudoLabels(*(array[rows] for array in asdict(self).values()))
        strange = np.setdiff1d(chosen.index, pool)
        if len(strange) or len(np.unique(chosen.index)) != len(rows):
            what = f"sample {strange[0]} is not in the training part" if len(strange) else "a sample stands there twice"
            raise ValueError(f"data.pseudo_labels: {what}; was the file made with other data, data.seed or data.val_fraction?")
        chosen._check_values(num_classes)
        return chosen

    def _check_values(self, num_classes: int) -> None:
        """Refuse targets and weights that no loss can take."""
        if not np.isfinite(self.weight).all() or (self.weight < 0).any():
            raise ValueError("data.pseudo_labels: every weight must be a finite number, 0 or above")
        if self.target.ndim == 1:
            wrong = self.target[(self.target < 0) | (self.target >= num_classes)]
            if len(wrong) or self.target.dtype.kind not in "iu":
                raise ValueError(f"data.pseudo_labels: label {wrong[0] if len(wrong) else self.target[0]} is none of the "
                                 f"{num_classes} classes 0 to {num_classes - 1}")
        elif self.target.shape[1:] != (num_classes,) or not (self.target >= 0).all() or not np.isfinite(self.target).all():
            raise ValueError(f"data.pseudo_labels: target of shape {self.target.shape} must hold probabilities of {num_classes} "
                             "classes for each sample")


def merged_targets(labels: PseudoLabels, targets: np.ndarray, num_classes: int) -> np.ndarray:
    """Targets of a whole data set with those of the pseudo-labelled samples put in.

    Args:
        labels: checked pseudo-labels of M samples.
        targets: class numbers, (N,).
        num_classes: number of classes K.

    Returns:
        Classes (N,) int64 where all labels are hard and weigh the same; else (N, K) float32, rows that sum to the weight
        of the sample: cross-entropy against such a row is the weighted cross-entropy.
    """
    if labels.target.ndim == 1 and (labels.weight == 1.0).all():
        merged = targets.astype(np.int64)
        merged[labels.index] = labels.target
        return merged
    rows = np.eye(num_classes, dtype=np.float32)
    soft = rows[targets]
    soft[labels.index] = (labels.target if labels.target.ndim == 2 else rows[labels.target]) * labels.weight[:, None]
    return soft
