"""Samples of a stream and embeddings of past batches, kept in buffers that a snapshot and a checkpoint cover."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_suite.functional.distributed import gather

EMPTY = -1
NEVER = -1e9
"""Logit of what must not be chosen; finite, so that 0 times it is 0."""


class SampleMemory(nn.Module):
    """A fixed number of slots for samples, their lengths and their predicted classes; the method says who leaves.

    Args:
        size: slots.
        sample_shape: shape of one sample, the longest where rows are padded.
        num_classes: K.
        device: where the slots are.

    Attributes:
        samples: (size, *sample_shape).
        lengths: valid time steps, (size,).
        labels: predicted classes, (size,); -1 for an empty slot.
    """

    samples: Tensor
    lengths: Tensor
    labels: Tensor

    def __init__(self, size: int, sample_shape: Sequence[int], num_classes: int, device: torch.device) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.register_buffer("samples", torch.zeros(size, *sample_shape, device=device))
        self.register_buffer("lengths", torch.zeros(size, dtype=torch.int64, device=device))
        self.register_buffer("labels", torch.full((size,), EMPTY, device=device))

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def filled(self) -> Tensor:
        """True for slots that hold a sample, (size,) bool."""
        return self.labels != EMPTY

    def crowded(self) -> Tensor:
        """True for samples of the classes with the most samples, (size,) bool."""
        counts = (self.labels == torch.arange(self.num_classes, device=self.labels.device)[:, None]).sum(1)
        return (counts == counts.max()).index_select(0, self.labels.clamp(min=0)) & self.filled

    def padded(self, x: Tensor) -> Tensor:
        """Samples (B, ...) with zeros at the end, in the shape of the slots."""
        shape = self.samples.shape[1:]
        if x.shape[1:-1] != shape[:-1] or x.shape[-1] > shape[-1]:
            raise ValueError(f"adapter.sample_shape={tuple(shape)} cannot hold samples of shape {tuple(x.shape[1:])}; give the "
                             "shape of the longest sample")
        return F.pad(x, (0, shape[-1] - x.shape[-1])).to(self.samples.dtype)

    def store(self, slot: Tensor, accepted: Tensor, x: Tensor, length: Tensor, label: Tensor) -> None:
        """Write one padded sample into a slot where it is accepted, both scalars."""
        for bank, new in ((self.samples, x), (self.lengths, length), (self.labels, label)):
            put(bank, slot, accepted, new)

    def rows(self) -> Tensor:
        """Slots that hold a sample, (M,) int64."""
        return self.filled.nonzero()[:, 0]


class Queue(nn.Module):
    """The newest embeddings of all processes, first in, first out: the keys of MoCo, the support set of NNCLR.

    In place of lightly's ``MemoryBankModule``, whose bank is left out of checkpoints, waits for the device at every step and
    drops the rows that pass its end.

    Args:
        size: rows kept.
        dim: width D of a row.

    Attributes:
        rows: (size, D) float32, random directions at first. A push puts another tensor in its place, so that a graph may
            still hold the old one.
        position: the row that is the next to go, scalar int64.
    """

    rows: Tensor
    position: Tensor

    def __init__(self, size: int, dim: int) -> None:
        super().__init__()
        if size < 1:
            raise ValueError(f"queue_size={size} must be at least 1")
        self.register_buffer("rows", F.normalize(torch.randn(size, dim), dim=1))
        self.register_buffer("position", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def push(self, new: Tensor) -> None:
        """Take in rows (B, D) of this process and of all others, in place of the oldest."""
        size, new = len(self.rows), gather(new)
        slots = (self.position + torch.arange(len(new), device=new.device)) % size
        self.rows = self.rows.index_copy(0, slots[-size:], new[-size:].to(self.rows.dtype))
        self.position = (self.position + len(new)) % size


class LabeledBank(nn.Module):
    """One embedding for each labelled sample that was seen, found again by its index.

    Args:
        size: samples there is room for; those that come later are left out.
        width: numbers D in an embedding.

    Attributes:
        features: embeddings of unit length, (size + 1, D); the last row is the place of what is left out.
        labels: classes, (size + 1,); -1 for an empty place.

    Raises:
        ValueError: a size below one.
    """

    features: Tensor
    labels: Tensor
    index: Tensor
    count: Tensor

    def __init__(self, size: int, width: int) -> None:
        super().__init__()
        if size < 1:
            raise ValueError(f"model.bank_size must be at least 1, got {size}; give the number of labelled samples or more")
        self.register_buffer("features", torch.zeros(size + 1, width))
        self.register_buffer("labels", torch.full((size + 1,), EMPTY))
        self.register_buffer("index", torch.full((size + 1,), EMPTY))
        self.register_buffer("count", torch.tensor(0))

    @torch.no_grad()
    def update(self, index: Tensor, features: Tensor, labels: Tensor) -> None:
        """Put new embeddings, of this process and of all others, in place of the old; of two of a sample, their mean.

        Args:
            index: positions of the samples in the data set, (N,).
            features: embeddings of unit length, (N, D).
            labels: classes, (N,).
        """
        (index, labels), features = gather(torch.stack([index, labels], dim=1)).unbind(1), gather(features)
        known = self.index == index[:, None]
        first = (index == index[:, None]).int().argmax(1)
        fresh = ~known.any(1) & (first == torch.arange(len(index), device=index.device))
        last = len(self.index) - 1
        place = (self.count + fresh.cumsum(0) - 1).clamp(max=last)[first]
        place = torch.where(known.any(1), known.int().argmax(1), place)
        total = torch.zeros_like(self.features).index_add_(0, place, features.to(self.features.dtype))
        touched = torch.zeros_like(self.labels, dtype=torch.bool).index_fill_(0, place, True)
        self.features.copy_(torch.where(touched[:, None], F.normalize(total, dim=1), self.features))
        for bank, new in ((self.index, index), (self.labels, labels)):
            bank[place] = new
            bank[last:] = EMPTY
        self.count.add_(fresh.sum()).clamp_(max=last)

    def similarities(self, features: Tensor, temperature: float) -> Tensor:
        """Cosines with rows (N, D) of unit length over the temperature, (N, size + 1); far below all at empty places."""
        return (features @ self.features.T / temperature).float().masked_fill(self.labels == EMPTY, NEVER)


def put(bank: Tensor, slot: Tensor, accepted: Tensor, new: Tensor) -> None:
    """Overwrite row ``slot`` of a bank (N, ...) by ``new`` (...) where accepted, without waiting for the device."""
    bank.index_copy_(0, slot, torch.where(accepted, new.to(bank.dtype), bank.index_select(0, slot)[0])[None])
