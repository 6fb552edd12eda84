"""TS2Vec: every time step of a series is told from other steps and from other series, at every scale.

Idea: two crops of a series overlap. A step of the overlap should look the same in both, whatever surrounds it and whatever
is hidden; it should differ from the other steps of its series (temporal contrast) and from the same step of other series
(instance contrast). Maxima over 2, 4, 8, ... steps are held to the same, so that the maximum over all of it is a
representation of the series.

Paper: Yue et al., "TS2Vec: Towards Universal Representation of Time Series", AAAI 2022, arXiv 2106.10466: equation 1
(temporal), equation 2 (instance), algorithm 1 (scales), section "Random Cropping", section "Timestamp Masking".

Deviations: none in the loss from the official code, which halves the paper's sum of the two contrasts and takes each in both
directions. As there, the lengths of crops and overlap are shared by a batch, their place is the row's own, and the mean of
the weights over all steps is judged. A crop is moved to the front of a row and what follows is hidden, which convolves as the
cropped row does; batch norm, which the official net has not (``backbone.norm=none``), counts the hidden steps. The official
code's dropout of representations is left out. Rows that end earlier take the same shares of their own length.

Batch: ``x`` (B, C, T) and ``index`` (B,), with ``epoch`` and ``length`` (B,) where present.

Known limits: batch norm does badly, for its statistics are those of the last weights on half-hidden series, and neither is
judged: take ``norm=none``. Needs a backbone whose stages keep the time axis (`SeriesConvNet`). The temporal contrast holds (2T)^2
numbers for each series, so cut long ones into windows. The averaged weights need some hundred steps to leave the initial ones.
"""

from __future__ import annotations

from typing import Unpack

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_suite.backbones.series import SeriesConvNet
from ssl_suite.batch import Backbone, Batch, StepOutput, Tags
from ssl_suite.functional.distributed import first_row, gather, rank, world_size
from ssl_suite.functional.ema import make_teacher
from ssl_suite.functional.precision import full_precision
from ssl_suite.functional.random import Draw
from ssl_suite.method import Method, Training
from ssl_suite.views import Views
from ssl_suite.views.series import steps, take, within

CROP_STREAM, MASK_STREAM = 100, 101


def overlapping_crops(n: Tensor, draw: Draw) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor], Tensor]:
    """Two crops of each row that overlap in at least two steps; the second begins where the overlap does.

    Args:
        n: valid steps of each row, (B,).
        draw: one stream per row; lengths follow the first row's, in all processes, places each row's own.

    Returns:
        Start and length of the first crop, the same of the second, and the length of the overlap; each (B,) int64.
    """
    shared, own = first_row(draw.uniform(4)).unbind(1), draw.uniform()

    def below(u: Tensor, high: Tensor) -> Tensor:
        return (u * high).long()

    overlap = torch.minimum(2 + below(shared[0], (n - 1).clamp_min(0)), n)
    left = below(shared[1], n - overlap + 1)
    first = below(shared[2], left + 1)
    right = left + overlap
    last = right + below(shared[3], n - right + 1)
    move = below(own, n - (last - first) + 1) - first
    return (first + move, right - first), (left + move, last - left), overlap


def contrast(similarity: Tensor, own: Tensor, partner: Tensor, exists: Tensor) -> Tensor:
    """-log softmax of each query's partner among all keys but the query itself.

    Args:
        similarity: of queries and keys, (..., Q, K).
        own: number of each query among the keys, (Q,).
        partner: number of its partner, (Q,).
        exists: keys that count, (..., K) bool.

    Returns:
        Loss of each query, (..., Q); meaningless where the query does not exist.
    """
    number = torch.arange(similarity.shape[-1], device=similarity.device)
    hidden = ~exists.unsqueeze(-2) | (number == own[:, None])
    logits = similarity.masked_fill(hidden, torch.finfo(similarity.dtype).min)
    return logits.logsumexp(-1) - logits.gather(-1, partner[:, None].expand(*logits.shape[:-1], 1)).squeeze(-1)


def instance_contrast(z: Tensor, exists: Tensor, own: slice) -> Tensor:
    """Equation 2: a step against the same step of all series of all processes.

    Args:
        z: both views of each process, one after the other, (P * 2B, D, T).
        exists: steps that count, (P * 2B, T) bool.
        own: the rows of this process.

    Returns:
        Loss of each of its steps, (2B, T).
    """
    size = own.stop - own.start
    row = torch.arange(size, device=z.device)
    similarity = z[own].permute(2, 0, 1) @ z.permute(2, 1, 0)
    return contrast(similarity, own.start + row, own.start + (row + size // 2) % size, exists.T).T


def temporal_contrast(z: Tensor, exists: Tensor) -> Tensor:
    """Equation 1: a step against all steps of its series in both views, (2B, D, T) that exist (2B, T); result (2B, T)."""
    both, size = torch.cat(z.chunk(2), dim=2), 2 * z.shape[2]
    step = torch.arange(size, device=z.device)
    similarity = both.transpose(1, 2) @ both
    loss = contrast(similarity, step, (step + size // 2) % size, torch.cat(exists.chunk(2), dim=1))
    return torch.cat(loss.chunk(2, dim=1))


@full_precision
def hierarchical_contrast(z: Tensor, length: Tensor) -> Tensor:
    """Algorithm 1: both contrasts, at single steps and at maxima over 2, 4, 8, ... of them, averaged over the scales.

    Args:
        z: the overlap in both views, one after the other, (2B, D, T).
        length: steps of the overlap, (2B,), the same in both views.

    Returns:
        A scalar; its mean over the processes is the loss of the whole batch.
    """
    own = slice(rank() * len(z), (rank() + 1) * len(z))
    z, length = gather(z.float()), gather(length)
    total, scales = z.new_zeros(()), z.new_zeros(())
    while z.shape[2]:
        exists = within(length, z.shape[2])
        count = exists.sum()
        loss = (instance_contrast(z, exists, own) + temporal_contrast(z[own], exists[own])) / 2.0
        total = total + loss.masked_fill(~exists[own], 0.0).sum() * world_size() / count.clamp_min(1)
        scales = scales + (count > 0)
        z, length = F.max_pool1d(z, 2) if z.shape[2] > 1 else z[:, :, :0], length // 2
    return total / scales.clamp_min(1.0)


class TS2Vec(Method):
    """Hierarchical contrast of two overlapping crops.

    Args:
        backbone: dilated convolutions over series; ``norm=none``, depth 10 and 320 features are the paper's.
        views: the kind named by ``view`` is used once; both crops are cut from it.
        view: kind of view; the paper augments by crops and masks alone (``clean``).
        mask_prob: probability of hiding a time step after the net's entry, in [0, 1), in each crop of its own.
        training: optimizer and schedule; see `Method`.

    Raises:
        ValueError: the probability lies outside [0, 1), or the backbone does not keep the time axis.
    """

    tags = Tags("Yue et al., AAAI 2022, arXiv 2106.10466", "pretraining", modalities=("series",), views=("clean",),
                across_batch=True)
    teachers = {"averaged": "backbone"}

    def __init__(self, backbone: Backbone, views: Views, *, view: str = "clean", mask_prob: float = 0.5,
                 **training: Unpack[Training]) -> None:
        super().__init__(backbone, views, **training)
        if not 0.0 <= mask_prob < 1.0:
            raise ValueError(f"mask_prob={mask_prob} must lie in [0, 1)")
        if not isinstance(backbone, SeriesConvNet):
            raise ValueError(f"ts2vec compares time steps, which {type(backbone).__name__} does not keep; "
                             "take backbone=series_convnet")
        self.view, self.mask_prob = view, mask_prob
        self.averaged = make_teacher(self.backbone)

    @property
    def encoder(self) -> nn.Module:
        return self.averaged

    def momentum(self, step: int, total: int) -> float:
        """Makes the teacher the plain mean of the initial weights and those after each step."""
        return step / (step + 1)

    def encode(self, x: Tensor, length: Tensor, draw: Draw) -> Tensor:
        """Vectors of each step, (B, D, T), with random steps hidden behind the net's entry."""
        entry, *blocks = self.backbone.stages
        maps = entry(x, length)
        maps = maps.masked_fill(draw.chance(self.mask_prob, x.shape[2])[:, None], 0.0)
        for block in blocks:
            maps = block(maps, length)
        return maps

    def step(self, batch: Batch) -> StepOutput:
        (x,) = self.views(batch, self.view)
        x = F.pad(x, (0, self.backbone.spec.shape[-1] - x.shape[2]))  # one shape in all processes
        step = torch.arange(x.shape[2], device=x.device)
        *crops, overlap = overlapping_crops(steps(x, batch.get("length")), self.views.draw(batch, CROP_STREAM))
        begin, both = crops[1][0], []
        for i, (start, length) in enumerate(crops):
            crop = take(x, (start[:, None] + step).clamp_max(x.shape[2] - 1))
            z = self.encode(crop, length, self.views.draw(batch, MASK_STREAM + i))
            both.append(take(z, (begin - start)[:, None].add(step).clamp_max(x.shape[2] - 1)))
        return StepOutput(hierarchical_contrast(torch.cat(both), overlap.repeat(2)))
