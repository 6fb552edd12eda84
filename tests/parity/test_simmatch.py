"""SimMatch against its equations, sample by sample, over steps, so that the bank is tested too."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_suite.batch import Batch
from ssl_suite.methods.self_training.simmatch import SimMatch
from tests.parity.tiny import Tiny, gradients, pictures, semi, views


def make(**kwargs) -> SimMatch:
    torch.manual_seed(0)
    given = {"threshold": 0.5, "bank_size": 40, "projection_dim": 4, "align_momentum": 0.9, "smoothing": 0.3}
    method = SimMatch(Tiny(), views(weak=0.3, strong=1.0), num_classes=3, **{**given, **kwargs})
    with torch.no_grad():
        method.head.weight.mul_(5.0)
        method.ema_head.weight.copy_(method.head.weight + 0.3)  # the teacher says something else
    return method


def batch_of(step: int) -> Batch:
    return {"labeled": pictures(6, 3 * step), "unlabeled": pictures(12, 100 + 20 * step, labels=False)}


class WrittenOut:
    """The algorithm with a dictionary for the bank."""

    def __init__(self, method: SimMatch) -> None:
        self.method, self.mean = method, None
        self.bank: dict[int, tuple[Tensor, int]] = {}

    def loss(self, batch: Batch) -> Tensor:
        m, y = self.method, batch["labeled"]["y"]
        (x,), (weak, strong) = m.views(batch["labeled"], "weak"), m.views(batch["unlabeled"], "weak", "strong")
        h = m.backbone(torch.cat([x, strong]))
        z = F.normalize(m.projector(h[6:]))
        logits = m.head(h)
        with torch.no_grad():
            teacher = m.ema_backbone(torch.cat([x, weak]))
            taught = F.normalize(m.ema_projector(teacher))
            p = m.ema_head(teacher[6:]).softmax(1)
        self.mean = p.mean(0) if self.mean is None else 0.9 * self.mean + 0.1 * p.mean(0)
        p = p * (1 / 3 + 1e-6) / (self.mean + 1e-6)
        p = p / p.sum(1, keepdim=True)
        self.bank |= {int(i): (taught[row], int(y[row])) for row, i in enumerate(batch["labeled"]["index"])}
        unsupervised = instance = torch.zeros(())
        for i in range(12):
            near = torch.stack([(taught[6 + i] @ f / 0.1).exp() for f, _ in self.bank.values()])
            near = near / near.sum()
            by_class = torch.stack([sum((a for a, (_, c) in zip(near, self.bank.values(), strict=True) if c == k),
                                        torch.zeros(())) for k in range(3)])
            target = 0.7 * p[i] + 0.3 * by_class
            if target.max() >= 0.5:
                unsupervised = unsupervised - target @ logits[6 + i].log_softmax(0)
            by_sample = torch.stack([a * p[i, c] for a, (_, c) in zip(near, self.bank.values(), strict=True)])
            by_sample = by_sample / by_sample.sum()
            seen = torch.stack([(z[i] @ f / 0.1).exp() for f, _ in self.bank.values()])
            instance = instance + (by_sample * (by_sample / (seen / seen.sum())).log()).sum()
        return F.cross_entropy(logits[:6], y) + 0.7 * unsupervised / 12 + 0.6 * instance / 12


def test_value_and_gradient_equal_the_equations_over_steps():
    method = make(lambda_u=0.7, lambda_in=0.6)
    twin = copy.deepcopy(method)
    reference, kept = WrittenOut(twin), []
    for step in range(4):
        method.zero_grad()
        twin.zero_grad()
        out, expected = method.step(batch_of(step)), reference.loss(batch_of(step))
        out.loss.backward()
        expected.backward()
        torch.testing.assert_close(out.loss, expected, rtol=1e-4, atol=1e-5)
        kept.append(float(out.logs["mask_ratio"]))
        theirs = gradients(twin)
        for name, grad in gradients(method).items():
            torch.testing.assert_close(grad, theirs[name], atol=1e-5, rtol=1e-3)
    assert min(kept) < 1.0
    assert max(kept) > 0.0
    assert int(method.bank.count) == len(reference.bank) == 15  # six a step, three of them new


def test_gradient_reaches_the_student_alone():
    method = make()
    method.step(semi()).loss.backward()
    for module in (method.ema_backbone, method.ema_head, method.ema_projector):
        assert all(p.grad is None for p in module.parameters())
    assert all(p.grad.abs().sum() > 0 for p in method.projector.parameters() if p.ndim > 1)


def test_a_bank_that_is_full_keeps_what_it_holds():
    method = make(bank_size=6)
    method.step(batch_of(0))
    before = method.bank.index.clone()
    assert torch.isfinite(method.step(batch_of(5)).loss)
    assert torch.equal(method.bank.index, before)


def test_without_unsupervised_weights_it_is_supervised_training():
    out = make(lambda_u=0.0, lambda_in=0.0).step(semi())
    assert torch.equal(out.loss.detach(), out.logs["loss_sup"])
    assert min(out.logs["loss_unsup"], out.logs["loss_in"]) > 0.0


def test_hidden_labels_are_not_used():
    batch = semi()
    plain = make().step(batch).loss
    batch["unlabeled"]["y"] = torch.full((12,), -1)
    assert torch.equal(plain, make().step(batch).loss)


@pytest.mark.parametrize(("kwargs", "message"), [
    ({"threshold": 95}, r"policy\.threshold .* 95"), ({"smoothing": 1.5}, r"model\.smoothing=1\.5"),
    ({"temperature": 0.0}, r"model\.temperature"), ({"bank_size": 0}, r"model\.bank_size")])
def test_bad_arguments(kwargs, message):
    with pytest.raises(ValueError, match=message):
        make(**kwargs)
