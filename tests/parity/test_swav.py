"""SwAV against equations 2 and 3 of the paper, written out, and against lightly."""

from __future__ import annotations

import copy

import pytest
import torch
from lightly.loss import SwaVLoss
from torch import Tensor

from ssl_suite.functional.random import Draw
from ssl_suite.methods.pretraining.swav import SwAV, similarity, swapped_prediction
from ssl_suite.optim import Constant
from ssl_suite.views import Views
from tests.parity.tiny import Tiny, gradients, pictures, views


class Half:
    """The upper left quarter of a picture, a small crop."""

    def __call__(self, x: Tensor, draw: Draw, length: Tensor | None) -> Tensor:
        return x[..., :4, :4] + 0.1 * draw.normal(x.shape[1], 4, 4)


class AnySize(Tiny):
    def forward(self, x: Tensor, length: Tensor | None = None) -> Tensor:
        return self.out(self.norm(self.stem(x)).relu().mean((2, 3)).repeat(1, 16))


def small_and_large() -> Views:
    return Views({"crop": views().kinds["crop"], "local": [Half()]})


def make(**kwargs) -> SwAV:
    torch.manual_seed(0)
    given = {"local_crops": 3, "num_prototypes": 5, "hidden_dim": 32, "projection_dim": 8, **kwargs}
    return SwAV(AnySize(), small_and_large(), **given)


def codes(scores: Tensor, epsilon: float = 0.05, iterations: int = 3) -> Tensor:
    """Sinkhorn-Knopp of the official code: Q of equation 3, scaled to prototypes and samples in turn, in float64."""
    q = torch.exp(scores.double() / epsilon).T
    q = q / q.sum()
    for _ in range(iterations):
        q = q / q.sum(1, keepdim=True) / q.shape[0]
        q = q / q.sum(0, keepdim=True) / q.shape[1]
    return (q * q.shape[1]).T


def written_out(method: SwAV, hs: list[Tensor], temperature: float) -> Tensor:
    """Equation 2 over two large and several small crops, each large one's code predicted by all others."""
    w = method.prototypes.weight
    z = method.projector(torch.cat(hs))
    scores = ((z / z.norm(dim=1, keepdim=True)) @ (w / w.norm(dim=1, keepdim=True)).T).chunk(len(hs))
    loss = torch.zeros(())
    for i in (0, 1):
        q = codes(scores[i].detach()).float()
        others = [-(q * torch.log_softmax(scores[v] / temperature, 1)).sum(1).mean() for v in range(len(hs)) if v != i]
        loss = loss + sum(others) / (len(hs) - 1) / 2
    return loss


def test_value_and_gradient_equal_the_equations():
    method, batch = make(temperature=0.2), pictures(6, labels=False)
    twin = copy.deepcopy(method)
    out = method.step(batch)
    out.loss.backward()
    x0, x1, *small = twin.views(batch, "crop", "crop", "local", "local", "local")
    assert small[0].shape[-1] == 4
    hs = [*twin.backbone(torch.cat([x0, x1])).chunk(2), *twin.backbone(torch.cat(small)).chunk(3)]
    expected = written_out(twin, hs, 0.2)
    expected.backward()
    torch.testing.assert_close(out.loss, expected)
    theirs = gradients(twin)
    assert set(theirs) == set(gradients(method)) == {name for name, _ in method.named_parameters()}
    for name, grad in gradients(method).items():
        torch.testing.assert_close(grad, theirs[name], atol=1e-5, rtol=1e-4)
    assert method.backbone.norm.num_batches_tracked == 2, "one pass for each size"


def test_the_loss_equals_lightly_with_and_without_a_queue():
    torch.manual_seed(1)
    scores = list(torch.rand(5, 6, 4).mul(2).sub(1).requires_grad_())
    past = list(torch.rand(2, 10, 4).mul(2).sub(1))
    for queue in (None, past):
        known = [s.detach() if queue is None else torch.cat([s.detach(), p]) for s, p in zip(scores[:2], past, strict=True)]
        ours = swapped_prediction(scores, [codes(s)[:6].float() for s in known], 0.1)
        theirs = SwaVLoss()(scores[:2], scores[2:], queue)[0]
        torch.testing.assert_close(ours, theirs)


def test_the_queue_takes_part_in_the_codes_once_the_run_has_got_there():
    method, batch = make(queue_size=8, queue_start=0.5), pictures(6, labels=False)
    old = method.queue.rows.clone()
    method.step(batch)
    assert not torch.equal(method.queue.rows[:6], old[:6])
    assert torch.equal(method.queue.rows[6:], old[6:])
    scores = torch.rand(2, 6, 5).unbind()
    torch.testing.assert_close(method.codes(scores)[1], codes(scores[1]).float())
    method.progress = 0.5
    past = [similarity(half, method.prototypes.weight) for half in method.queue.rows.chunk(2, dim=1)]
    for i in (0, 1):
        torch.testing.assert_close(method.codes(scores)[i], codes(torch.cat([scores[i], past[i].detach()]))[:6].float())
    torch.testing.assert_close(method.queue.rows[:6, :8].norm(dim=1), torch.ones(6))


def test_prototypes_rest_at_first_and_their_length_plays_no_part():
    method, batch = make(frozen=0.1, schedule=Constant()), pictures(6, labels=False)
    resting = [group for group in method.groups() if "schedule" in group]
    assert [id(p) for group in resting for p in group["params"]] == [id(method.prototypes.weight)]
    assert [resting[0]["schedule"](step, 100) for step in (0, 9, 10, 99)] == [0.0, 0.0, 1.0, 1.0]
    before = method.step(batch).loss
    with torch.no_grad():
        method.prototypes.weight.mul_(torch.rand(5, 1) + 0.5)
    torch.testing.assert_close(method.step(batch).loss, before)


def test_bad_values_are_refused():
    for name in ("temperature", "epsilon"):
        with pytest.raises(ValueError, match=f"{name}=0"):
            make(**{name: 0.0})
