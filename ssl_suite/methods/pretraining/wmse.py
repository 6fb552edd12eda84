"""W-MSE: pull the views of a sample together in a space where every batch is whitened, so that it cannot collapse.

Idea: if the embeddings of a batch have the identity as covariance, they are spread by construction, and the distance
between views is all that is left to learn.

Paper: Ermolov et al., "Whitening for Self-Supervised Representation Learning", ICML 2021, arXiv 2007.06346, equations 2 to
5, sub-batches of section 3.1.

Deviations: where the batch is no multiple of ``whitening_size``, sub-batches are a little larger (the official code takes
multiples only), and a smaller batch is one sub-batch. Whitening runs in float64, as a Cholesky factor loses half of the
digits, and the projector in float32 under autocast, as whitening blows up the rounding of narrow directions. lightly's
``WMSELoss`` is the parity twin; it draws its order from the global generator and whitens each process alone.

Batch: ``x`` (B, ...) and ``index`` (B,), with ``epoch`` and ``length`` (B,) where present.

Known limits: sub-batches should hold at least twice as many samples as the embedding has dimensions. The covariance is that of
the sub-batch, so small ones are noisy. ``shrinkage`` lets through those that have none of full rank, and no others: directions
of less variance than it are hardly whitened, so that the loss falls where the network shrinks them and the features lose rank.
"""

from __future__ import annotations

from itertools import combinations
from typing import Unpack

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_suite.batch import Backbone, Batch, StepOutput, Tags
from ssl_suite.functional.distributed import gather_together
from ssl_suite.functional.precision import full_precision
from ssl_suite.method import Method, Training
from ssl_suite.nn.heads import mlp
from ssl_suite.views import Views


@full_precision
def whiten(z: Tensor, shrinkage: float = 0.0) -> Tensor:
    """Samples with mean 0 and the identity as covariance, by the inverse Cholesky factor of theirs (equation 5), in float64.

    Args:
        z: embeddings, (N, D).
        shrinkage: share of the identity that is mixed into the covariance where N is at most D, in [0, 1].

    Returns:
        (N, D) float64, with gradient; not a number where the covariance has no Cholesky factor.

    Raises:
        ValueError: no more samples than dimensions and no shrinkage, so that the covariance has no inverse.
    """
    n, d = z.shape
    if n <= d and not shrinkage:
        raise ValueError(f"{n} samples have no covariance of full rank in projection_dim={d}; take larger batches, a smaller "
                         "projection_dim, or model.shrinkage above 0")
    centred = z.double() - z.double().mean(0)
    eye = torch.eye(d, dtype=torch.float64, device=z.device)
    covariance = torch.lerp(centred.T @ centred / (n - 1), eye, shrinkage if n <= d else 0.0)
    factor = torch.linalg.cholesky_ex(covariance)[0]  # the checked form would wait for the device
    return torch.linalg.solve_triangular(factor, centred.T, upper=False).T


@full_precision
def embed(h: Tensor, projector: nn.Module) -> Tensor:
    """Embeddings (N, D) float32 of representations."""
    return projector(h.float())


class WMSE(Method):
    """Distance of whitened views.

    Args:
        backbone: any backbone.
        views: kind ``crop`` is used ``positives`` times.
        positives: views of a sample (the paper's W-MSE 2 and 4).
        whitening_size: samples that are whitened together.
        whitening_rounds: orders in which the batch is cut into sub-batches, at each step.
        shrinkage: share of the identity in the covariance of sub-batches of at most ``projection_dim`` samples, in [0, 1].
        hidden_dim: width of the head's hidden layer.
        projection_dim: width D of the embedding.
        training: optimizer and schedule; see `Method`.
    """

    tags = Tags("Ermolov et al., ICML 2021, arXiv 2007.06346", "pretraining", views=("crop", "crop"), across_batch=True,
                joint_embedding=True)

    def __init__(self, backbone: Backbone, views: Views, *, positives: int = 2, whitening_size: int = 128,
                 whitening_rounds: int = 1, shrinkage: float = 0.0, hidden_dim: int = 1024, projection_dim: int = 64,
                 **training: Unpack[Training]) -> None:
        super().__init__(backbone, views, **training)
        if positives < 2:
            raise ValueError(f"positives={positives} must be at least 2: the loss compares views of a sample")
        self.projector = mlp(backbone.num_features, hidden_dim, projection_dim)
        self.positives, self.rounds = positives, whitening_rounds
        self.whitening_size, self.shrinkage = whitening_size, shrinkage

    def whitened(self, z: Tensor, order: Tensor) -> Tensor:
        """Unit directions of the samples (N, D), whitened in sub-batches along an order (N,), in that order."""
        parts = z[order].tensor_split(max(1, len(z) // self.whitening_size))
        return F.normalize(torch.cat([whiten(part, self.shrinkage) for part in parts]), dim=1)

    def step(self, batch: Batch) -> StepOutput:
        views, length = self.views(batch, *["crop"] * self.positives), batch.get("length")
        hs = [self.backbone(x, length) for x in views]
        draws = self.views.draw(batch, 100).uniform(self.rounds)
        *zs, draws = gather_together(*embed(torch.cat(hs), self.projector).chunk(self.positives), draws)
        orders = draws.argsort(0)
        distances = []
        for order in orders.unbind(1):
            whitened = [self.whitened(z, order) for z in zs]
            distances += [2.0 - 2.0 * (a * b).sum(1).mean() for a, b in combinations(whitened, 2)]
        return StepOutput(torch.stack(distances).mean().float(), features=hs[0].detach())
