"""Embeddings that are remembered over steps, in buffers, so that a resumed run goes on with them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

EMPTY = -1
NEVER = -1e9


class EmbeddingQueue(nn.Module):
    """The newest embeddings with a distribution over classes each; the oldest make room.

    Args:
        size: embeddings kept, over all processes.
        width: numbers D in an embedding.
        num_classes: K.

    Attributes:
        count: embeddings that ever came, a scalar.

    Raises:
        ValueError: a size below one.
    """

    features: Tensor
    probs: Tensor
    count: Tensor

    def __init__(self, size: int, width: int, num_classes: int) -> None:
        super().__init__()
        if size < 1:
            raise ValueError(f"model.queue_size must be at least 1, got {size}")
        self.register_buffer("features", torch.zeros(size, width))
        self.register_buffer("probs", torch.zeros(size, num_classes))
        self.register_buffer("count", torch.tensor(0))

    @property
    def full(self) -> Tensor:
        """Whether every place is taken, a scalar."""
        return self.count >= len(self.features)

    @torch.no_grad()
    def push(self, features: Tensor, probs: Tensor) -> None:
        """Remember rows (N, D) with their distributions (N, K), the same on all processes; of too many, the last."""
        features, probs = (rows[-len(self.features):] for rows in (features, probs))
        place = (self.count + torch.arange(len(features), device=features.device)) % len(self.features)
        self.features.index_copy_(0, place, features.to(self.features.dtype))
        self.probs.index_copy_(0, place, probs.to(self.probs.dtype))
        self.count += len(features)

    def neighbours(self, features: Tensor, temperature: float) -> Tensor:
        """Mean distribution of what is remembered, by likeness to rows (N, D) of unit length: (N, K)."""
        return (features @ self.features.T / temperature).softmax(1) @ self.probs


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
        """Put new embeddings in place of the old; one that comes twice gets the mean direction of both.

        Args:
            index: positions of the samples in the data set, (N,), the same on all processes.
            features: embeddings of unit length, (N, D).
            labels: classes, (N,).
        """
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
