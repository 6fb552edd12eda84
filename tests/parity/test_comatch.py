"""CoMatch against its equations, pair by pair, over steps, so that the queue is tested too."""

from __future__ import annotations

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_suite.batch import Batch
from ssl_suite.methods.self_training.comatch import CoMatch, graph_loss
from tests.parity.tiny import Tiny, gradients, pictures, semi, views


def make(**kwargs) -> CoMatch:
    torch.manual_seed(0)
    given = {"threshold": 0.5, "queue_size": 30, "projection_dim": 4, "align_momentum": 0.9, "smoothing": 0.3,
             "link_threshold": 0.4}
    method = CoMatch(Tiny(), views(weak=0.3, strong=1.0), num_classes=3, **{**given, **kwargs})
    with torch.no_grad():
        method.head.weight.mul_(5.0)
    return method


def batch_of(step: int) -> Batch:
    return {"labeled": pictures(6, 10 * step), "unlabeled": pictures(12, 100 + 20 * step, labels=False)}


class WrittenOut:
    """The algorithm with a list for the queue."""

    def __init__(self, method: CoMatch) -> None:
        self.method, self.mean = method, None
        self.queue: list[tuple[Tensor, Tensor]] = []

    def loss(self, batch: Batch) -> Tensor:
        m, y = self.method, batch["labeled"]["y"]
        rows = [*m.views(batch["labeled"], "weak"), *m.views(batch["unlabeled"], "weak", "strong", "strong")]
        h = m.backbone(torch.cat(rows))
        z = m.projector(h)
        z = z / (z**2).sum(1, keepdim=True).sqrt()
        logits = m.head(h)
        p = logits[6:18].detach().softmax(1)
        self.mean = p.mean(0) if self.mean is None else 0.9 * self.mean + 0.1 * p.mean(0)
        p = p * (1 / 3 + 1e-6) / (self.mean + 1e-6)
        p = p / p.sum(1, keepdim=True)
        target = p.clone()
        if len(self.queue) == 30:
            for i in range(12):
                likeness = torch.stack([(z[6 + i].detach() @ f / 0.2).exp() for f, _ in self.queue])
                near = sum(a * q for a, (_, q) in zip(likeness / likeness.sum(), self.queue, strict=True))
                target[i] = 0.7 * p[i] + 0.3 * near
        new = [*zip(z[6:18].detach(), p, strict=True), *zip(z[:6].detach(), torch.eye(3)[y], strict=True)]
        self.queue = [*self.queue, *new][-30:]
        supervised = F.cross_entropy(logits[:6], y)
        kept = target.amax(1) >= 0.5
        unsupervised = -(target * logits[18:30].log_softmax(1)).sum(1)[kept].sum() / 12
        return supervised + 0.7 * unsupervised + 0.6 * self.graph(z[18:30], z[30:], target)

    def graph(self, z0: Tensor, z1: Tensor, target: Tensor) -> Tensor:
        total = torch.zeros(())
        for i in range(12):
            links = [1.0 if i == j else float(target[i] @ target[j]) for j in range(12)]
            links = [w if w >= 0.4 else 0.0 for w in links]
            likeness = [(z0[i] @ z1[j] / 0.2).exp() for j in range(12)]
            total = total - sum(w / sum(links) * (a / sum(likeness)).log() for w, a in zip(links, likeness, strict=True))
        return total / 12


def test_value_and_gradient_equal_the_equations_over_steps():
    method = make(lambda_u=0.7, lambda_c=0.6)
    twin = copy.deepcopy(method)
    reference = WrittenOut(twin)
    for step in range(4):
        method.zero_grad()
        twin.zero_grad()
        out, expected = method.step(batch_of(step)), reference.loss(batch_of(step))
        out.loss.backward()
        expected.backward()
        torch.testing.assert_close(out.loss, expected)
        assert 0.0 < out.logs["mask_ratio"] < 1.0
        theirs = gradients(twin)
        for name, grad in gradients(method).items():
            torch.testing.assert_close(grad, theirs[name], atol=1e-5, rtol=1e-3)
    assert int(method.queued) == 72


def test_graph_of_equal_labels_links_all_and_of_unlike_ones_nothing_but_the_sample():
    z = torch.eye(4)
    alone = graph_loss(z, z, torch.eye(4), 0.5, 0.8)
    torch.testing.assert_close(alone, torch.tensor(math.log(math.exp(2.0) + 3.0) - 2.0))
    everyone = graph_loss(z, z, torch.eye(4)[:1].expand(4, 4), 0.5, 0.8)
    torch.testing.assert_close(everyone, torch.tensor(math.log(math.exp(2.0) + 3.0) - 0.5))


def test_smoothing_waits_for_a_full_queue():
    smooth, plain = make(smoothing=0.9), make(smoothing=0.0)
    losses = [(float(smooth.step(batch_of(i)).loss.detach()), float(plain.step(batch_of(i)).loss.detach())) for i in range(3)]
    assert losses[0][0] == losses[0][1]
    assert losses[1][0] == losses[1][1]
    assert losses[2][0] != losses[2][1]


def test_without_unsupervised_weights_it_is_supervised_training():
    out = make(lambda_u=0.0, lambda_c=0.0).step(semi())
    assert torch.equal(out.loss.detach(), out.logs["loss_sup"])
    assert min(out.logs["loss_unsup"], out.logs["loss_graph"]) > 0.0


def test_hidden_labels_are_not_used():
    batch = semi()
    plain = make().step(batch).loss
    batch["unlabeled"]["y"] = torch.full((12,), -1)
    assert torch.equal(plain, make().step(batch).loss)


@pytest.mark.parametrize(("kwargs", "message"), [
    ({"threshold": 95}, r"policy\.threshold .* 95"), ({"smoothing": -0.1}, r"model\.smoothing=-0\.1"),
    ({"temperature": 0.0}, r"model\.temperature"), ({"queue_size": 0}, "queue_size=0")])
def test_bad_arguments(kwargs, message):
    with pytest.raises(ValueError, match=message):
        make(**kwargs)
