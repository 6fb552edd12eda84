"""Doubly robust self-training against the formula, at its two extremes, and in closed form for a mean."""

from __future__ import annotations

import warnings

import lightning as L
import pytest
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader

from ssl_suite.methods.self_training.doubly_robust import DoublyRobust, doubly_robust_loss
from tests.parity.tiny import Tiny, gradients, pictures, semi, views


def make(**kwargs) -> DoublyRobust:
    torch.manual_seed(0)
    return DoublyRobust(Tiny(), views(), num_classes=3, **kwargs)


def student(**kwargs) -> DoublyRobust:
    """In its second half, with a teacher of weights of its own; norms by stored statistics, so that rows do not mix."""
    method = make(**kwargs)
    with torch.no_grad():
        method.head.bias.copy_(torch.tensor([0.2, -0.1, 0.05]))
    method.next_generation()
    return method.eval()


def guesses(method, batch):
    return method.teacher["head"](method.teacher["backbone"](method.views(batch, "clean")[0])).argmax(1)


def losses(method, batch):
    (weak_l,), (weak_u,) = (method.views(batch[part], "weak") for part in ("labeled", "unlabeled"))
    ours, others = method.head(method.backbone(weak_l)), method.head(method.backbone(weak_u))
    f_l, f_u, y = guesses(method, batch["labeled"]), guesses(method, batch["unlabeled"]), batch["labeled"]["y"]
    return F.cross_entropy(others, f_u), F.cross_entropy(ours, y), F.cross_entropy(ours, f_l)


def test_the_first_half_is_plain_training_on_labels():
    method, batch = make(), semi()
    x = method.views(batch["labeled"], "weak")[0]
    torch.testing.assert_close(method.step(batch).loss, F.cross_entropy(method.head(method.backbone(x)), batch["labeled"]["y"]))


@pytest.mark.parametrize(("progress", "alpha"), [(0.5, 0.0), (0.6, 0.2), (1.0, 1.0)])
def test_the_second_half_equals_the_formula(progress, alpha):
    method, batch = student(), semi()
    method.progress = progress
    pseudo, true, wrong = losses(method, batch)
    torch.testing.assert_close(method.step(batch).loss, pseudo + alpha * (true - wrong))


def test_modes_to_compare_with():
    batch = semi(6, 12)
    pseudo, true, _ = losses(student(), batch)
    torch.testing.assert_close(student(mode="pseudo").step(batch).loss, pseudo)
    torch.testing.assert_close(student(mode="mixture").step(batch).loss, (6 * true + 12 * pseudo) / 18)


def test_a_teacher_that_is_right_leaves_the_loss_on_all_samples():
    method, batch = student(start=0.0, end=0.0), semi()
    method.progress = 0.9
    batch["labeled"]["y"] = guesses(method, batch["labeled"])
    method.step(batch).loss.backward()
    ours = gradients(method)
    method.zero_grad()
    losses(method, batch)[0].backward()
    for name, value in gradients(method).items():
        torch.testing.assert_close(ours[name], value)


def epoch(method, accuracies):
    for accuracy in accuracies:
        method.on_train_batch_end({"logs": {"teacher_accuracy": torch.tensor(accuracy)}}, {}, 0)
    method.on_train_epoch_end()


def test_a_teacher_without_mistakes_is_told_once():
    method = student()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        method.on_train_batch_end({"logs": {}}, {}, 0)  # the teacher's own half
        method.on_train_epoch_end()
    with pytest.warns(UserWarning, match=r"right on 99\.5% of the labelled samples.*model\.teacher_share=0\.5"):
        epoch(method, [1.0, 0.99])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        epoch(method, [1.0])
        epoch(student(), [1.0, 0.9])
        epoch(student(mode="pseudo"), [1.0])


def test_the_trainer_judges_the_teacher(recwarn):
    def told(y):
        recwarn.clear()
        batch = semi()
        batch["labeled"]["y"] = y
        method = make()
        with torch.no_grad():
            method.head.bias.copy_(torch.tensor([0.0, 100.0, 0.0]))  # the teacher says 1
        trainer = L.Trainer(max_epochs=4, accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
                            enable_checkpointing=False)
        trainer.fit(method, DataLoader([batch] * 3, batch_size=None))
        assert method.current == 1
        return sum("correction vanishes" in str(w.message) for w in recwarn)

    right = torch.ones_like(semi()["labeled"]["y"])
    assert told(right) == 1
    assert told(torch.cat([right[1:], right.new_zeros(1)])) == 0


def test_accuracy_counts_the_rows_kept_from_the_teacher_alone():
    method, batch = student(teacher_share=0.5), semi(40, 20)
    batch["labeled"]["y"] = guesses(method, batch["labeled"])
    assert method.step(batch).logs["teacher_accuracy"] == 1.0
    kept = (method.taught(batch["labeled"]["index"]) == 0.0).nonzero()[0]
    batch["labeled"]["y"][kept] = (batch["labeled"]["y"][kept] + 1) % 3
    count = (method.taught(batch["labeled"]["index"]) == 0.0).sum()
    torch.testing.assert_close(method.step(batch).logs["teacher_accuracy"], (count - 1) / count)


@pytest.mark.parametrize("constant", [False, True])
def test_with_the_same_samples_on_both_sides_any_teacher_leaves_training_on_labels(constant):
    method = student(start=0.0, end=0.0)
    if constant:
        with torch.no_grad():
            method.teacher["head"].bias.copy_(torch.tensor([0.0, 100.0, 0.0]))
    method.progress = 0.9
    labeled = pictures(6)
    batch = {"labeled": labeled, "unlabeled": {key: value for key, value in labeled.items() if key != "y"}}
    assert constant == bool((guesses(method, labeled) == 1).all())
    method.step(batch).loss.backward()
    ours = gradients(method)
    method.zero_grad()
    losses(method, batch)[1].backward()
    for name, value in gradients(method).items():
        torch.testing.assert_close(ours[name], value, atol=1e-6, rtol=1e-5)


def test_teacher_gets_no_gradient_and_the_student_does():
    method, batch = student(), semi()
    method.progress = 1.0
    method.step(batch).loss.backward()
    assert all(p.grad is None for p in method.teacher.parameters())
    assert method.backbone.stem.weight.grad.abs().sum() > 0.0


def test_labels_kept_from_the_teacher_alone_make_the_correction():
    method, batch = student(teacher_share=0.5, start=0.0, end=0.0), semi(40, 20)
    method.progress = 1.0
    taught = method.taught(batch["labeled"]["index"])
    assert 8 < taught.sum() < 32
    later = {**batch["labeled"], "epoch": torch.full((40,), 7)}
    assert torch.equal(taught, method.taught(later["index"]))
    y = batch["labeled"]["y"]
    loss = method.step(batch).loss
    for rows, same in ((taught == 1.0, True), (taught == 0.0, False)):
        changed = torch.where(rows, (y + 1) % 3, y)
        other = method.step({**batch, "labeled": {**batch["labeled"], "y": changed}}).loss
        assert torch.equal(other, loss) == same
    teacher = make(teacher_share=0.5).eval()
    (x,) = teacher.views(batch["labeled"], "weak")
    per_row = F.cross_entropy(teacher.head(teacher.backbone(x)), y, reduction="none")
    torch.testing.assert_close(teacher.step(batch).loss, per_row[taught == 1.0].sum() / 20)


@pytest.mark.parametrize("slope", [1.0, 0.0, -2.0])
def test_the_mean_of_a_gaussian_in_closed_form(slope):
    """Squared loss: the minimum is mean f + mean (y - f), right on average for any f, with the variance of the formula."""
    n, total, runs = 50, 1000, 4000
    generator = torch.Generator().manual_seed(0)
    x, noise = torch.randn(2, runs, total, generator=generator, dtype=torch.float64)
    y, f = 1.5 + x + 0.5 * noise, slope * x + 0.7
    theta = torch.zeros(runs, requires_grad=True, dtype=torch.float64)
    square = [(theta[:, None] - target) ** 2 for target in (f, y[:, :n], f[:, :n])]
    (grad,) = torch.autograd.grad(sum(doubly_robust_loss(*(s[i] for s in square)) for i in range(runs)), theta)
    minimum = -grad / 2.0  # the loss is theta^2 - 2 theta m + c
    torch.testing.assert_close(minimum, f.mean(1) + (y[:, :n] - f[:, :n]).mean(1))
    variance = ((1 - slope) ** 2 + 0.25) / n + slope**2 / total + 2 * (1 - slope) * slope / total
    assert minimum.mean().item() == pytest.approx(1.5, abs=5 * (variance / runs) ** 0.5)
    assert minimum.var().item() == pytest.approx(variance, rel=0.1)
    labels_alone = 1.25 / n
    assert (variance < labels_alone) == (slope == 1.0)  # a good f helps; a bad one costs variance, never the mean


@pytest.mark.parametrize("wrong", [{"teacher_share": 0.0}, {"start": 0.5, "end": 0.2}])
def test_nonsense_is_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        make(**wrong)
