"""CoMatch: class probabilities and embeddings of the unlabelled samples teach each other, through a graph of each.

Idea: samples that are alike in embedding should have like labels, so pseudo-labels are smoothed over neighbours; samples
of like pseudo-labels should be alike in embedding, so the graph of the labels is the target of a contrastive loss.

Paper: Li et al., "CoMatch: Semi-Supervised Learning with Contrastive Graph Regularization", ICCV 2021, arXiv 2011.11183,
in the form of the official CIFAR code: one network, guesses aligned to the uniform distribution, a queue of weak views
and labelled samples with the labels before smoothing, soft labels believed by a threshold, two strong views in the graph.

Deviations: guesses are aligned by a running mean that the step moves first, in place of the mean over 32 batches (see
`Alignment`). Smoothing begins as soon as the queue is full. The projector has a ReLU where the official one leaks. The
moving average is warmed up, as in `FixMatch`. Over several processes queue and graph hold the rows of all.

Batch: ``labeled`` with ``x`` (B, ...), ``y`` (B,), ``index``; ``unlabeled`` with ``x`` (M, ...), ``index``; both with
``epoch`` and ``length`` where present. Labelled and unlabelled rows of different T are padded to the longer.

Known limits: B + 3 M rows a step. Uniform alignment is wrong where the classes are not balanced. The
graph is (M, M) over all processes and is computed on each. Neighbours are searched among the newest ``queue_size`` rows.
"""

from __future__ import annotations

from typing import Unpack

import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_suite.batch import Backbone, Batch, StepOutput, Tags
from ssl_suite.functional.distributed import gather_together, world_size
from ssl_suite.functional.pseudo_labels import concat_rows, consistency_loss
from ssl_suite.method import Training
from ssl_suite.methods.self_training.fixmatch import FixMatch
from ssl_suite.methods.self_training.policies import Alignment, FixedThreshold
from ssl_suite.nn.heads import mlp
from ssl_suite.nn.memory import Queue
from ssl_suite.views import Views


def graph_loss(z0: Tensor, z1: Tensor, probs: Tensor, temperature: float, threshold: float) -> Tensor:
    """Cross-entropy between a graph of pseudo-labels and one of embeddings (equations 8 to 12).

    The target of row i is p_i . p_j, 1 for j = i, 0 below the threshold, made to sum to 1; what is to match it is the
    softmax over j of z0_i . z1_j / temperature.

    Args:
        z0: embeddings of one view, of unit length, (M, D).
        z1: embeddings of the other view, (M, D).
        probs: pseudo-labels, detached, (M, K).
        temperature: above 0.
        threshold: least likeness of two pseudo-labels that are linked.

    Returns:
        Scalar; the gradient flows through both views.
    """
    links = (probs @ probs.T).fill_diagonal_(1.0)
    links = links * (links >= threshold)
    return F.cross_entropy(z0 @ z1.T / temperature, links / links.sum(1, keepdim=True))


class CoMatch(FixMatch):
    """FixMatch with labels smoothed over neighbours, plus a contrastive loss whose pairs the labels choose.

    Args:
        backbone: any backbone.
        views: kind ``weak`` for all samples, ``strong`` twice for the unlabelled ones.
        num_classes: number of classes.
        threshold: least probability of a pseudo-label that counts, in [0, 1].
        lambda_u: weight of the loss on pseudo-labels.
        lambda_c: weight of the contrastive loss.
        smoothing: share of the neighbours in a pseudo-label, in [0, 1].
        link_threshold: least likeness of two pseudo-labels that are linked.
        temperature: of the likeness of embeddings; above 0.
        projection_dim: width of the embedding.
        queue_size: rows among which neighbours are searched; the official code keeps 5 steps, 5 (B + M).
        align_momentum: momentum of the running mean that guesses are aligned by, in [0, 1].
        ema_decay: momentum of the averaged weights.
        training: optimizer and schedule; see `Method`.

    Raises:
        ValueError: an argument lies outside of its range.
    """

    tags = Tags("Li et al., ICCV 2021, arXiv 2011.11183", "self_training", batch="semi", views=("weak", "strong", "strong"),
                across_batch=True, target="class")
    queued: Tensor

    def __init__(self, backbone: Backbone, views: Views, *, num_classes: int, threshold: float = 0.95, lambda_u: float = 1.0,
                 lambda_c: float = 1.0, smoothing: float = 0.1, link_threshold: float = 0.8, temperature: float = 0.2,
                 projection_dim: int = 64, queue_size: int = 2560, align_momentum: float = 0.97, ema_decay: float = 0.999,
                 **training: Unpack[Training]) -> None:
        super().__init__(backbone, views, num_classes=num_classes, policy=FixedThreshold(threshold), lambda_u=lambda_u,
                         ema_decay=ema_decay, **training)
        if not 0.0 <= smoothing <= 1.0:
            raise ValueError(f"model.smoothing={smoothing} is a share and must lie in [0, 1]")
        if temperature <= 0.0:
            raise ValueError(f"model.temperature must be above 0, got {temperature}")
        self.projector = mlp(backbone.num_features, backbone.num_features, projection_dim, norm=False)
        self.queue = Queue(queue_size, projection_dim + num_classes)  # embeddings, with their labels beside them
        self.register_buffer("queued", torch.tensor(0))
        self.align = Alignment(num_classes, align_momentum)
        self.num_classes, self.smoothing, self.temperature = num_classes, smoothing, temperature
        self.lambda_c, self.link_threshold = lambda_c, link_threshold

    @torch.no_grad()
    def label(self, probs: Tensor, z: Tensor, given: Tensor, z_given: Tensor) -> Tensor:
        """Pseudo-labels (M, K) of guesses (M, K) with embeddings (M, D); then all rows go into the queue.

        Args:
            probs: aligned guesses.
            z: their embeddings.
            given: labels of the labelled rows, (B, K).
            z_given: embeddings of the labelled rows, (B, D).
        """
        known, labels = self.queue.rows.tensor_split([z.shape[1]], dim=1)
        near = (z @ known.T / self.temperature).softmax(1).to(labels.dtype) @ labels
        target = torch.where(self.queued >= len(known), torch.lerp(probs, near.to(probs.dtype), self.smoothing), probs)
        rows = torch.cat([torch.cat([z, z_given]), torch.cat([probs, given])], dim=1)
        self.queue.push(rows)
        self.queued += len(rows) * world_size()
        return target

    def step(self, batch: Batch) -> StepOutput:
        labeled, unlabeled = batch["labeled"], batch["unlabeled"]
        views = [*self.views(labeled, "weak"), *self.views(unlabeled, *self.tags.views)]
        h = self.backbone(*concat_rows(views, [part.get("length") for part in (labeled, *[unlabeled] * 3)]))
        sizes = [len(view) for view in views]
        logits, weak, strong, _ = self.head(h).split(sizes)
        z_labeled, z_weak, z0, z1 = F.normalize(self.projector(h).float(), dim=1).split(sizes)

        probs = self.align(weak.detach().float().softmax(1))
        given = F.one_hot(labeled["y"], self.num_classes).to(probs.dtype)
        target = self.label(probs, z_weak.detach(), given, z_labeled.detach())
        weight = self.policy(target)[1]
        loss_sup, loss_unsup = F.cross_entropy(logits, labeled["y"]), consistency_loss(strong, target, weight)
        z0, z1, target = gather_together(z0, z1, target)
        loss_graph = graph_loss(z0, z1, target, self.temperature, self.link_threshold)
        logs = {"loss_sup": loss_sup.detach(), "loss_unsup": loss_unsup.detach(), "loss_graph": loss_graph.detach(),
                "mask_ratio": weight.mean()}
        return StepOutput(loss_sup + self.lambda_u * loss_unsup + self.lambda_c * loss_graph, logs, h[: len(logits)].detach())
