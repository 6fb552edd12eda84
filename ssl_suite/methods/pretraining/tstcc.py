"""TS-TCC: from the past of one view of a series, predict the future of the other; contexts of one series attract each other.

Idea: a transformer sums up a weakly augmented series up to some step into a context and predicts from it the next steps of the
strongly augmented one, and the other way round, which is harder than predicting one's own future and keeps what survives
augmentation. The two contexts of a series are then told from those of all others.

Paper: Eldele et al., "Time-Series Representation Learning via Temporal and Contextual Contrasting", IJCAI 2021, arXiv
2106.14112: equations 1 and 2 (temporal contrasting), equation 3 (contextual contrasting), equation 4 (their sum).

Deviations: the paper's encoder shortens the series by strides and pools; here the vectors of any backbone are averaged over
``segments`` equal stretches of each row's own valid part, so that rows of all lengths have as many steps and nothing padded is
seen. As in the official code the vectors are brought to unit length, the step up to which is summed up is drawn once for a
batch, and the context sees no positions; unlike there, the softmax runs over the candidates of one prediction, as the paper
writes it, and over all processes. What weak and strong mean is the data's (paper: scaling; permutation with jitter).

Batch: ``x`` (B, C, T) and ``index`` (B,), with ``epoch`` and ``length`` (B,) where present.

Known limits: convolutions that look far ahead see some of the future that is to be predicted; views that warp time loosen what
there is to predict. The pooled representation, which is judged, is trained through its steps alone.
"""

from __future__ import annotations

from typing import Unpack

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_suite.batch import Backbone, Batch, StepOutput, Tags
from ssl_suite.functional.contrastive import nt_xent
from ssl_suite.functional.distributed import first_row, gather, rank
from ssl_suite.functional.precision import full_precision
from ssl_suite.method import Method, Training
from ssl_suite.nn.heads import mlp
from ssl_suite.nn.transformer import Transformer
from ssl_suite.views import Views

TIME_STREAM = 100


def segment_means(tokens: Tensor, segments: int, length: Tensor | None = None) -> Tensor:
    """Means over equal stretches of each row's own tokens; neighbours share a token where they do not divide evenly.

    Args:
        tokens: (B, N, D).
        segments: number of stretches S.
        length: valid tokens of each row, (B,); all by default.

    Returns:
        (B, S, D).
    """
    n = tokens.new_full((len(tokens),), tokens.shape[1], dtype=torch.int64) if length is None else length
    edge = torch.arange(segments, device=tokens.device)
    first, last = edge * n[:, None] // segments, -(-(edge + 1) * n[:, None] // segments)
    number = torch.arange(tokens.shape[1], device=tokens.device)
    inside = ((number >= first[:, :, None]) & (number < last[:, :, None])).to(tokens.dtype)
    return (inside / inside.sum(dim=2, keepdim=True).clamp_min(1)) @ tokens


@full_precision
def temporal_contrast(prediction: Tensor, future: Tensor) -> Tensor:
    """Equations 1 and 2 for one direction: each predicted step told from the same step of the others in the batch.

    Args:
        prediction: of the next K steps from each context, (B, K, D).
        future: those steps in the other view, (B, K, D).

    Returns:
        Scalar: the mean over rows and steps.
    """
    logits = torch.einsum("bkd,nkd->bkn", prediction.float(), gather(future.float()))
    own = torch.arange(len(prediction), device=logits.device) + rank() * len(prediction)
    return F.cross_entropy(logits.flatten(0, 1), own.repeat_interleave(prediction.shape[1]))


class TSTCC(Method):
    """Temporal and contextual contrast of a weak and a strong view.

    Args:
        backbone: any backbone over series.
        views: kinds ``weak`` and ``strong`` are used.
        segments: steps that a series is brought to.
        horizon: steps K to predict; the paper takes about 0.4 of the steps.
        width: width of the context; a multiple of its 4 heads.
        depth: blocks of the transformer.
        temperature: of the contextual contrast; above 0.
        temporal: weight of the temporal contrast, lambda 1.
        contextual: weight of the contextual contrast, lambda 2.
        training: optimizer and schedule; see `Method`.

    Raises:
        ValueError: nothing is left to sum up before the horizon.
    """

    tags = Tags("Eldele et al., IJCAI 2021, arXiv 2106.14112", "pretraining", modalities=("series",), views=("weak", "strong"),
                across_batch=True, joint_embedding=True)

    def __init__(self, backbone: Backbone, views: Views, *, segments: int = 16, horizon: int = 6, width: int = 100, depth: int = 4,
                 temperature: float = 0.2, temporal: float = 1.0, contextual: float = 0.7, **training: Unpack[Training]) -> None:
        super().__init__(backbone, views, **training)
        if not 0 < horizon < segments:
            raise ValueError(f"horizon={horizon} must lie between 1 and segments - 1 = {segments - 1}")
        features = backbone.num_features
        self.segments, self.horizon, self.temperature = segments, horizon, temperature
        self.temporal, self.contextual = temporal, contextual
        self.embed = nn.Linear(features, width)
        self.token = nn.Parameter(0.02 * torch.randn(1, 1, width))
        self.transformer = Transformer(width, depth, heads=4, mlp_ratio=64 / width)
        self.predict = nn.Linear(width, horizon * features)
        self.projector = mlp(width, features // 2, features // 4)

    def context(self, z: Tensor, last: Tensor) -> Tensor:
        """What the transformer makes of steps 0 to ``last`` (1,) of z (B, S, D), (B, width)."""
        tokens = torch.cat([self.token.expand(len(z), -1, -1), self.embed(z)], dim=1)
        seen = torch.arange(tokens.shape[1], device=z.device) <= last + 1
        return self.transformer(tokens, seen.expand(len(z), -1))[:, 0]

    def steps(self, x: Tensor, length: Tensor | None) -> Tensor:
        """The steps of one view, (B, S, D), each of unit length."""
        valid = None if length is None else self.backbone.token_lengths(length)
        return F.normalize(segment_means(self.backbone.tokens(x, length), self.segments, valid), dim=2)

    def step(self, batch: Batch) -> StepOutput:
        weak, strong = (self.steps(x, batch.get("length")) for x in self.views(batch, *self.tags.views))
        u = first_row(self.views.draw(batch, TIME_STREAM).uniform())
        last = (u * (self.segments - self.horizon)).long()
        ahead = last + 1 + torch.arange(self.horizon, device=u.device)
        contexts = [self.context(z, last) for z in (weak, strong)]
        predictions = [self.predict(c).unflatten(1, (self.horizon, -1)) for c in contexts]
        futures = [z.index_select(1, ahead) for z in (strong, weak)]
        temporal = torch.stack([temporal_contrast(p, f) for p, f in zip(predictions, futures, strict=True)]).sum()
        z0, z1 = (self.projector(c) for c in contexts)
        contextual = nt_xent(z0, z1, self.temperature)
        logs = {"temporal": temporal.detach(), "contextual": contextual.detach()}
        return StepOutput(self.temporal * temporal + self.contextual * contextual, logs)
