"""E2MC: go on from a trained VICReg for a few epochs, and spread every dimension of the embedding evenly.

Idea: the entropy of a wide embedding cannot be estimated, that of each dimension can. Squashed into a cube, the embedding has most
entropy where every dimension is uniform and no two of them go together; both are asked for on top of the loss that was there.

Paper: Chakraborty et al., "Improving Pre-Trained Self-Supervised Embeddings Through Effective Entropy Maximization", AISTATS 2025,
arXiv 2411.15931; m-spacing estimate of entropy, covariance of the squashed embedding, and the loss of the first training.

Deviations: of the losses that the paper goes on from, VICReg's, with the sigmoid that its code takes there. The published commands
leave the weights of the two terms open; the defaults are those of the official script's arguments. ``init_from`` takes over the
weights and the optimizer's moments of a run, as the official code does; the rate is this run's.

Batch: ``x`` (B, ...) and ``index`` (B,), with ``epoch`` and ``length`` (B,) where present.

Known limits: the estimate lies about 1 / (2m) low, m being the root of the batch over all processes; where ``train/saturation``
rises, the sigmoid passes little gradient. It moves entropies much and accuracy little: compare with as many epochs of VICReg.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ssl_suite.batch import Backbone, Batch, StepOutput, Tags
from ssl_suite.config import ConfigError
from ssl_suite.functional.distributed import gather_together
from ssl_suite.io.checkpoints import newest_checkpoint, take_over
from ssl_suite.methods.pretraining.vicreg import VICReg, decorrelation
from ssl_suite.views import Views


def marginal_entropy(u: Tensor, eps: float = 1e-7) -> Tensor:
    """Mean over dimensions of the entropy of each, by m-spacings with m = sqrt(N) (Vasicek, 1976).

    Args:
        u: samples in the unit cube, (N, D), N at least 2.
        eps: added to each spacing, which is 0 where values repeat.

    Returns:
        Scalar in nats: near 0, its maximum, for uniform samples, and log(a) for samples uniform on a stretch of length a.
    """
    n, m = len(u), round(len(u) ** 0.5)
    ordered = u.sort(dim=0).values
    return ((n + 1) / m * (ordered[m:] - ordered[:-m]) + eps).log().mean()


def figures(z0: Tensor, z1: Tensor) -> dict[str, Tensor]:
    """``entropy``, ``squashed_covariance`` and ``saturation`` of the embeddings of two views, (N, D) float32 each."""
    with torch.autocast(z0.device.type, enabled=False):
        cubes = [z.sigmoid() for z in (z0, z1)]
        return {"entropy": (marginal_entropy(cubes[0]) + marginal_entropy(cubes[1])) / 2,
                "squashed_covariance": decorrelation(cubes[0]) + decorrelation(cubes[1]),
                "saturation": ((cubes[0].detach() - 0.5).abs() > 0.49).float().mean()}


class E2MC(VICReg):
    """VICReg that goes on with the entropy of its embedding as a further aim.

    Args:
        backbone: any backbone.
        views: kind ``crop`` is used twice.
        entropy: weight of the mean entropy of the squashed dimensions, which is raised.
        squashed_covariance: weight of their covariances, summed over the two views, which are lowered.
        start: folder of a run of VICReg whose weights and moments are taken over; None goes on from what the backbone holds.
        options: as for `VICReg`; ``hidden_dim`` and ``projection_dim`` are those of the run.
    """

    tags = Tags("Chakraborty et al., AISTATS 2025, arXiv 2411.15931", "pretraining", views=("crop", "crop"), across_batch=True,
                joint_embedding=True)

    def __init__(self, backbone: Backbone, views: Views, *, entropy: float = 10.0, squashed_covariance: float = 1.0,
                 start: str | None = None, **options: Any) -> None:
        super().__init__(backbone, views, **options)
        self.entropy, self.squashed_covariance, self.start = entropy, squashed_covariance, start

    def on_fit_start(self) -> None:
        """Take over the run named, unless this one is itself taken up again."""
        if self.start is None or self.trainer.ckpt_path is not None:
            return
        try:
            take_over(self, self.trainer.optimizers[0], newest_checkpoint(Path(self.start)))
        except (FileNotFoundError, RuntimeError, ValueError) as error:
            raise ConfigError(f"init_from={self.start}: E2MC goes on from a run of model=vicreg, with its projector and moments; "
                              "give that run's folder and its model.hidden_dim and model.projection_dim "
                              f"({str(error).splitlines()[-1].strip()})") from error

    def step(self, batch: Batch) -> StepOutput:
        length = batch.get("length")
        h0, h1 = (self.backbone(x, length) for x in self.views(batch, *self.tags.views))
        z0, z1 = gather_together(*(self.projector(h).float() for h in (h0, h1)))
        found = figures(z0, z1)
        terms = self.squashed_covariance * found["squashed_covariance"] - self.entropy * found["entropy"]
        loss = self.criterion(z0, z1) + terms
        return StepOutput(loss, {name: value.detach() for name, value in found.items()}, h0.detach())

    def score(self, batch: Batch) -> dict[str, tuple[Tensor, int]]:
        """`figures` of samples that are not learned from, batch by batch; a single one, which has none, counts for nothing."""
        n, length = len(batch["x"]), batch.get("length")
        z0, z1 = (self.projector(self.backbone(x, length)).float() for x in self.views(batch, *self.tags.views))
        return {name: (value * n, n) if n > 1 else (value.new_zeros(()), 0) for name, value in figures(z0, z1).items()}
