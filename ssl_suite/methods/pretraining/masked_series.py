"""SimMTM: rebuild a series from its masked copies and its neighbours, weighted by how alike they look as a whole.

Idea: hiding half of a series ruins what varies over time, but several copies hidden differently complement each other. The
vectors of all other series and copies in the batch are averaged with the softmax of their similarity to the series, and a
linear layer rebuilds it from that average; so the representations of copies have to agree and those of strangers must not.

Unlike `mae`, which shows a transformer the visible patches of one series and asks it for the hidden ones, this works with
convolutions, hides single steps of single channels, never rebuilds from the row itself, and learns the pooled representation.

Paper: Dong et al., "SimMTM: A Simple Pre-Training Framework for Masked Time-Series Modeling", NeurIPS 2023, arXiv 2302.00861:
equations 1 to 3 (similarity, aggregation, reconstruction), 4 and 5 (constraint), 6 (weights). Masks by Zerveas et al., KDD
2021, arXiv 2010.02803: hidden and shown stretches of geometric length.

Deviations: the originals alone are rebuilt, as the paper writes it (the official classification code rebuilds the copies too),
by a linear layer on each step's vector (that code flattens all steps, which fixes the length). Steps that a row lacks take no
part in the average. As in that code the constraint is a mean over rows and the weights are 1 / (2 s^2) with log(1 + s^2).

Batch: ``x`` (B, C, T) and ``index`` (B,), with ``epoch`` and ``length`` (B,) where present.

Known limits: one step encodes (1 + copies) B series; needs a backbone whose stages keep the time axis (`SeriesConvNet`).
"""

from __future__ import annotations

from typing import Unpack

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_suite.backbones.series import SeriesConvNet
from ssl_suite.batch import Backbone, Batch, StepOutput, Tags
from ssl_suite.functional.distributed import gather, gather_together, rank
from ssl_suite.functional.masking import masked_mean
from ssl_suite.functional.precision import full_precision
from ssl_suite.functional.random import Draw
from ssl_suite.method import Method, Training
from ssl_suite.nn.heads import mlp
from ssl_suite.views import Views
from ssl_suite.views.series import steps, within

MASK_STREAM = 100


def geometric_mask(draw: Draw, channels: int, size: int, ratio: float, span: float) -> Tensor:
    """Stretches of hidden and of shown steps, both of geometric length, each channel alone.

    A chain of two states is one that is drawn anew with a fixed probability in every step and kept otherwise.

    Args:
        draw: one stream per row.
        channels: number of channels C.
        size: number of steps T.
        ratio: expected share of hidden steps.
        span: mean length of a hidden stretch.

    Returns:
        Mask, (B, C, T) bool, True = hidden.
    """
    anew = draw.chance(1.0 / (span * (1.0 - ratio)), size, channels).transpose(1, 2)
    state = draw.chance(ratio, size, channels).transpose(1, 2)
    step = torch.arange(size, device=anew.device)
    return state.gather(2, (step * anew).cummax(dim=2).values)


@full_precision
def similarities(s: Tensor, temperature: float) -> Tensor:
    """Equation 1 over the temperature: cosine of each row with all rows of all processes, -inf with itself.

    Args:
        s: representations of the originals and, after them, of each copy, (R, D).
        temperature: tau.

    Returns:
        (R, W R).
    """
    s = F.normalize(s.float(), dim=1)
    own = torch.arange(len(s), device=s.device) + rank() * len(s)
    logits = s @ gather(s).T / temperature
    return logits.masked_fill(torch.arange(logits.shape[1], device=s.device) == own[:, None], -torch.inf)


def constraint(logits: Tensor, originals: int) -> Tensor:
    """Equation 5: -log softmax summed over the other versions of the same series, mean over rows.

    Args:
        logits: see `similarities`, (R, W R).
        originals: series B of this process.
    """
    rows, number = logits.shape[0], torch.arange(logits.shape[1], device=logits.device)
    own = number[:rows] + rank() * rows
    related = (number % rows % originals == own[:, None] % rows % originals) & (number // rows == rank())
    related &= number != own[:, None]
    return -logits.log_softmax(dim=1).masked_fill(~related, 0.0).sum() / rows


@full_precision
def aggregate(weights: Tensor, maps: Tensor, valid: Tensor) -> Tensor:
    """Equation 2: the weighted mean of what the other rows have at each step.

    Args:
        weights: of the rows of all processes, (B, W R), rows sum to 1.
        maps: vectors of this process's rows, (R, D, T).
        valid: steps that exist, (R, T) bool.

    Returns:
        (B, D, T).
    """
    rows, exists = gather_together((maps.float() * valid[:, None]).flatten(1), valid.float())
    share = (weights @ exists).clamp_min(torch.finfo(torch.float32).tiny)
    return (weights @ rows).unflatten(1, maps.shape[1:]) / share[:, None]


class MaskedSeries(Method):
    """SimMTM: reconstruction from masked copies and neighbours.

    Args:
        backbone: convolutions over series.
        views: the kind named by ``view`` is used.
        view: kind of view of the originals; the paper takes them as they are (``clean``).
        mask_ratio: share of hidden steps, in (0, 1).
        span: mean length of a hidden stretch; at least 1 / (1 - mask_ratio).
        copies: masked copies of each series, M.
        temperature: of both softmaxes; above 0.
        hidden_dim: width of the projector's hidden layer.
        projection_dim: width of a series's vector.
        training: optimizer and schedule; see `Method`.

    Raises:
        ValueError: a number out of range, or a backbone that does not keep the time axis.
    """

    tags = Tags("Dong et al., NeurIPS 2023, arXiv 2302.00861", "pretraining", modalities=("series",), views=("clean",),
                across_batch=True)

    def __init__(self, backbone: Backbone, views: Views, *, view: str = "clean", mask_ratio: float = 0.5, span: float = 3.0,
                 copies: int = 3, temperature: float = 0.2, hidden_dim: int = 256, projection_dim: int = 128,
                 **training: Unpack[Training]) -> None:
        super().__init__(backbone, views, **training)
        if not 0.0 < mask_ratio < 1.0 or span * (1.0 - mask_ratio) < 1.0 or copies < 1:
            raise ValueError(f"mask_ratio={mask_ratio} must lie in (0, 1), span={span} reach 1 / (1 - mask_ratio), and "
                             f"copies={copies} be at least 1")
        if not isinstance(backbone, SeriesConvNet):
            raise ValueError(f"masked_series rebuilds time steps, which {type(backbone).__name__} does not keep; "
                             "take backbone=series_convnet, or model=mae for patch transformers")
        self.view, self.mask_ratio, self.span, self.copies, self.temperature = view, mask_ratio, span, copies, temperature
        self.projector = mlp(backbone.num_features, hidden_dim, projection_dim)
        self.decoder = nn.Conv1d(backbone.num_features, backbone.spec.shape[0], 1)
        self.sigma = nn.Parameter(torch.ones(2))

    def step(self, batch: Batch) -> StepOutput:
        (x,) = self.views(batch, self.view)
        x = F.pad(x, (0, self.backbone.spec.shape[-1] - x.shape[2]))  # one shape in all processes
        b, n = len(x), steps(x, batch.get("length"))
        draws = [self.views.draw(batch, MASK_STREAM + i) for i in range(self.copies)]
        masks = [geometric_mask(draw, x.shape[1], x.shape[2], self.mask_ratio, self.span) for draw in draws]
        versions, length = torch.cat([x, *(x.masked_fill(mask, 0.0) for mask in masks)]), n.repeat(self.copies + 1)
        maps = self.backbone.maps(versions, length)
        h = self.backbone.pool(maps, length)
        logits = similarities(self.projector(h), self.temperature)
        agree = constraint(logits, b)
        rebuilt = self.decoder(aggregate(logits[:b].softmax(dim=1), maps, within(length, x.shape[2])))
        rebuild = masked_mean((rebuilt.float() - x).square().mean(1), within(n, x.shape[2]))
        weight, penalty = 0.5 / self.sigma.square(), (1.0 + self.sigma.square()).log().sum()
        logs = {"constraint": agree.detach(), "reconstruction": rebuild.detach()}
        return StepOutput(weight[0] * agree + weight[1] * rebuild + penalty, logs, h[:b].detach())
