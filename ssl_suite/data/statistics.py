"""Shape and channel statistics of a data set, from a fixed sample of its training part."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from ssl_suite.batch import Batch, Modality
from ssl_suite.data.sources import Source
from ssl_suite.views.plan import to_float

LIMIT = 2000
CHUNK = 250
Description = tuple[tuple[int, ...], tuple[float, ...], tuple[float, ...]]
"""Shape of one sample, mean and standard deviation of each channel."""


def describe(source: Source, indices: np.ndarray, modality: Modality, mean: Sequence[float] | None = None,
             std: Sequence[float] | None = None) -> Description:
    """Shape of one sample, and mean and standard deviation of each channel, as measured or as given.

    At most 2000 samples are read, spread evenly over ``indices``, so that the result is the same on every process.

    Args:
        source: where the samples come from.
        indices: those that may be looked at (the training part without its held-out samples), (N,).
        modality: speech gets mean 0 and deviation 1 unseen; pictures and series are measured on valid values only.
        mean: of each channel, (C,), in place of the measured one.
        std: likewise, above 0.

    Returns:
        Shape without padding and with the longest T of the source; means; deviations (1 for a constant channel).

    Raises:
        ValueError: there are no samples, a series holds a value that is not finite within its valid steps, or what is given
            does not fit the channels.
    """
    if len(indices) == 0:
        raise ValueError("the training part is empty; lower data.val_fraction or check the data's path")
    first = source.fetch(indices[:1])["x"]
    shape = tuple(first.shape[1:])
    if source.lengths is not None:
        shape = (*shape[:-1], max(shape[-1], int(source.lengths.max())))
    measured = torch.tensor([[0.0], [1.0]])
    if modality != "speech":
        measured = torch.stack(channel_statistics(source, spread(indices, LIMIT)))
    for name, given in (("mean", mean), ("std", std)):
        if given is not None and (len(given) != len(measured[0]) or (name == "std" and min(given) <= 0.0)):
            raise ValueError(f"data.{name}={list(given)}: one number for each of {len(measured[0])} channels is needed"
                             f"{', above 0' if name == 'std' else ''}")
    return shape, tuple(measured[0].tolist() if mean is None else mean), tuple(measured[1].tolist() if std is None else std)


def spread(indices: np.ndarray, limit: int) -> np.ndarray:
    """At most ``limit`` of the indices, evenly spaced."""
    if len(indices) <= limit:
        return indices
    return indices[np.linspace(0, len(indices) - 1, limit).round().astype(np.int64)]


def channel_statistics(source: Source, indices: np.ndarray) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation over everything but the channels, in double precision, (C,) each."""
    count, total, square = torch.zeros(3, 1, dtype=torch.float64)
    for chosen, x, valid in _chunks(source, indices):
        _check_finite(chosen, x, valid)
        x = torch.where(valid, x, 0.0)
        axes = (0, *range(2, x.ndim))
        count = count + valid.expand_as(x).sum(axes)
        total, square = total + x.sum(axes), square + (x * x).sum(axes)
    mean = total / count
    std = (square / count - mean * mean).clamp_min(0.0).sqrt()
    return mean, torch.where(std > 1e-8, std, torch.ones_like(std))


def _chunks(source: Source, indices: np.ndarray) -> Iterator[tuple[np.ndarray, Tensor, Tensor]]:
    for start in range(0, len(indices), CHUNK):
        chosen = indices[start : start + CHUNK]
        batch = source.fetch(chosen)
        x = to_float(batch["x"]).double()
        yield chosen, x, _valid(batch, x)


def _valid(batch: Batch, x: Tensor) -> Tensor:
    """Mask of the values that are not padding, of a shape that broadcasts to ``x``."""
    if "length" not in batch:
        return torch.ones((1,) * x.ndim, dtype=torch.bool)
    return torch.arange(x.shape[-1]) < batch["length"].view(-1, *(1,) * (x.ndim - 1))


def _check_finite(indices: np.ndarray, x: Tensor, valid: Tensor) -> None:
    bad = (~torch.isfinite(x) & valid).flatten(1).any(1)
    if bad.any():
        raise ValueError(f"sample {int(indices[int(bad.nonzero()[0])])} holds NaN or infinite values within its valid "
                         "steps; fill or remove them before training (padding must stand after the last valid step)")
