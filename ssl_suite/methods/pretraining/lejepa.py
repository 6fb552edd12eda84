"""LeJEPA: draw all views of a sample to the mean of its large ones, and every view's batch to an isotropic Gaussian.

Idea: of all distributions of an embedding the isotropic Gaussian serves unknown tasks best; asking for it rules collapse out
without teacher, stopped gradient or schedule.

Paper: Balestriero and LeCun, "LeJEPA: Provable and Scalable Self-Supervised Learning Without the Heuristics", 2025, arXiv
2511.08544; SIGReg with the Epps-Pulley statistic (`ssl_suite.functional.sigreg`).

Deviations: none known in the loss; weights are 1 - lambda and lambda, and SIGReg is taken per view and averaged. Directions
are a function of (seed, step), so that all processes and a resumed run draw the same without a word between them.

Batch: ``x`` (B, ...) and ``index`` (B,), with ``epoch`` and ``length`` (B,) where present.

Known limits: on small or narrow data the loss may fall while the representation stays no better than an untrained one: watch
the probe and the rank of the features. SIGReg costs views x B x directions x knots numbers.
"""

from __future__ import annotations

from typing import Unpack

import torch

from ssl_suite.batch import Backbone, Batch, StepOutput, Tags
from ssl_suite.functional.multicrop import encode_together
from ssl_suite.functional.sigreg import directions, sigreg
from ssl_suite.method import Method, Training
from ssl_suite.nn.heads import mlp
from ssl_suite.views import Views

LARGE = ("crop", "crop")


class LeJEPA(Method):
    """Invariance and an isotropic Gaussian.

    Args:
        backbone: any backbone.
        views: kind ``crop`` is used twice, kind ``local`` as often as ``local_crops`` says.
        local_crops: small crops.
        gaussian: weight lambda of SIGReg, in [0, 1]; the invariance has what is left.
        num_directions: random directions of a step.
        knots: points of SIGReg's integral.
        t_max: its end.
        hidden_dim: width of the projector's two hidden layers.
        projection_dim: width of the embedding.
        training: optimizer and schedule; see `Method`.
    """

    tags = Tags("Balestriero and LeCun, 2025, arXiv 2511.08544", "pretraining", views=(*LARGE, "local"), across_batch=True,
                joint_embedding=True)

    def __init__(self, backbone: Backbone, views: Views, *, local_crops: int = 6, gaussian: float = 0.05,
                 num_directions: int = 1024, knots: int = 17, t_max: float = 3.0, hidden_dim: int = 2048,
                 projection_dim: int = 64, **training: Unpack[Training]) -> None:
        super().__init__(backbone, views, **training)
        if not 0.0 <= gaussian <= 1.0:
            raise ValueError(f"gaussian={gaussian} must be in [0, 1]: the invariance weighs what is left")
        self.projector = mlp(backbone.num_features, hidden_dim, projection_dim, layers=3)
        self.local_crops, self.gaussian, self.num_directions = local_crops, gaussian, num_directions
        self.knots, self.t_max = knots, t_max

    def step(self, batch: Batch) -> StepOutput:
        views = self.views(batch, *LARGE, *["local"] * self.local_crops)
        hs = encode_together(self.backbone, views, batch.get("length"))
        z = torch.stack(self.projector(torch.cat(hs)).float().chunk(len(views)))
        along = directions(self.num_directions, z.shape[-1], self.global_step, z.device, self.views.seed)
        invariance = (z - z[:2].mean(0)).square().mean()
        gaussianity = sigreg(z, along, self.knots, self.t_max)
        loss = (1.0 - self.gaussian) * invariance + self.gaussian * gaussianity
        return StepOutput(loss, {"invariance": invariance.detach(), "gaussianity": gaussianity.detach()}, hs[0].detach())
