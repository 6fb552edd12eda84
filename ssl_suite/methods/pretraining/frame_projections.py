"""Frame projections: a series, its spectrum and its wavelet coefficients attract each other; nothing is augmented.

Idea: what may be done to a series without changing its meaning is hard to say for a new sensor. Its coefficients in another
frame, Fourier's or wavelets, hold all of it and look quite different, so encoders of the frames can be held to agree without
guessing. When trained, the encoder in time works alone; tiny mappers imitate what the two others would say.

Paper: Demirel and Holz, "Learning Without Augmenting: Unsupervised Time Series Representation Learning via Frame Projections",
NeurIPS 2025, arXiv 2510.22655.

Deviations: the mappers of representations are trained beside the encoders, cut off from them and at a rate of their own, not in
a second run after them; the code's division of the mapping loss by the batch size is ``map_weight``. The judged and exported
representation is the time encoder's alone unless ``mapped``. Shorter rows are filled up with zeros to the length of the longest
series before they are transformed. Scales start at 2 steps, since shorter waves do not exist in samples. The networks of the two
frames are smaller, and the coefficients of wavelets are averaged over time, not weighed by it. The paper's encoder in time ends
in a mean over time, ``pool: mean`` of ours.

Batch: ``x`` (B, C, T) and ``index`` (B,), with ``epoch`` and ``length`` (B,) where present.

Known limits: nothing enforces that noise, gain or shifts are ignored: where the right augmentation is known, it may do better.
The angle of a coefficient near zero is noise. The mappers of 8 parameters imitate a frame a little better than a constant does,
and worse than the mean of each of its features, so do not expect much of ``mapped``.
"""

from __future__ import annotations

from itertools import combinations
from typing import Any, Unpack

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_suite.batch import Backbone, Batch, StepOutput, Tags
from ssl_suite.functional.contrastive import nt_xent
from ssl_suite.method import Method, Training
from ssl_suite.nn.heads import mlp
from ssl_suite.nn.spectra import Mapper, ScalogramEncoder, SpectrumEncoder
from ssl_suite.optim import parameter_groups
from ssl_suite.views import Views


def distance(mappers: nn.ModuleList, h: Tensor, targets: list[Tensor]) -> Tensor:
    """Mean absolute differences of what the mappers make of h (B, D) from their targets (B, D), added up."""
    return torch.stack([F.l1_loss(m(h).float(), target) for m, target in zip(mappers, targets, strict=True)]).sum()


class FrameProjections(Method):
    """Contrast of one series in time, in frequency and in wavelets.

    Args:
        backbone: any backbone over series, of even width D: the encoder in time.
        views: the kind named by ``view`` is used once; all three frames see it.
        view: kind of view; the paper takes series as they are (``clean``).
        temperature: of the contrast; above 0.
        map_weight: weight of the mapping of embeddings; 1 over the batch size reproduces the official code.
        scales: scales of the wavelets.
        width: channels inside the encoders of the two frames.
        hidden_dim: width of the projectors' hidden layer.
        projection_dim: width of the embeddings, even.
        mapper_rate: learning rate of the mappers of representations, whose few weights have far to go.
        mapped: represent a sample by the imitated frames beside its own representation, (B, 3 D).
        training: optimizer and schedule; see `Method`.

    Raises:
        ValueError: an odd width.
    """

    tags = Tags("Demirel and Holz, NeurIPS 2025, arXiv 2510.22655", "pretraining", modalities=("series",), views=("clean",),
                across_batch=True, joint_embedding=True)

    def __init__(self, backbone: Backbone, views: Views, *, view: str = "clean", temperature: float = 0.15, map_weight: float = 1.0,
                 scales: int = 48, width: int = 32, hidden_dim: int = 128, projection_dim: int = 128, mapper_rate: float = 1e-2,
                 mapped: bool = False, **training: Unpack[Training]) -> None:
        super().__init__(backbone, views, **training)
        features, (channels, steps) = backbone.num_features, backbone.spec.shape
        if features % 2 or projection_dim % 2:
            raise ValueError(f"the mappers need even widths: projection_dim={projection_dim}, and the backbone has "
                             f"num_features={features}")
        self.view, self.temperature, self.map_weight = view, temperature, map_weight
        self.mapper_rate, self.mapped = mapper_rate, mapped
        self.fourier = SpectrumEncoder(channels, steps, width, features)
        self.wavelet = ScalogramEncoder(channels, steps, scales, width, features)
        self.projectors = nn.ModuleList(mlp(features, hidden_dim, projection_dim) for _ in range(3))
        self.embedding_mappers = nn.ModuleList(Mapper(64) for _ in range(2))
        self.mappers = nn.ModuleList(Mapper(1) for _ in range(2))

    def groups(self) -> list[dict[str, Any]]:
        rest = nn.ModuleList([self.backbone, self.fourier, self.wavelet, self.projectors, self.embedding_mappers])
        return [*parameter_groups(rest), *({**group, "lr": self.mapper_rate} for group in parameter_groups(self.mappers))]

    def forward(self, batch: Batch) -> Tensor:
        h = super().forward(batch)
        if not self.mapped:
            return h
        fourier, wavelet = (mapper(h) for mapper in self.mappers)
        return torch.cat([fourier, h, wavelet], dim=1)

    def step(self, batch: Batch) -> StepOutput:
        (x,), length = self.views(batch, self.view), batch.get("length")
        x = F.pad(x, (0, self.backbone.spec.shape[-1] - x.shape[2]))
        frames = [self.backbone(x, length), self.fourier(x), self.wavelet(x, length)]
        embeddings = [projector(h).float() for projector, h in zip(self.projectors, frames, strict=True)]
        z, *others = (F.normalize(e, dim=1) for e in embeddings)
        identity = torch.stack([nt_xent(a, b, self.temperature) for a, b in combinations((z, *others), 2)]).sum()
        mapping = distance(self.embedding_mappers, z, others)
        h, *targets = (frame.detach().float() for frame in frames)
        imitation = distance(self.mappers, h, targets)
        logs = {"identity": identity.detach(), "mapping": mapping.detach(), "imitation": imitation.detach()}
        return StepOutput(identity + self.map_weight * mapping + imitation, logs, h)
