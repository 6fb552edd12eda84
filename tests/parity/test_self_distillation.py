from __future__ import annotations

import runpy
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from sklearn.datasets import load_diabetes

from ssl_suite.functional.distillation import optimal_xi, ridge, self_distillation_target
from ssl_suite.methods.distillation.self_distillation import PerGeneration, SelfDistillation
from ssl_suite.optim import Cosine
from tests.parity.tiny import Tiny, pictures, views


def make(**kwargs) -> SelfDistillation:
    torch.manual_seed(0)
    return SelfDistillation(Tiny(), views(), num_classes=3, **kwargs)


@pytest.mark.parametrize("xi", [-0.5, 0.0, 0.5, 1.0, 1.7])
def test_one_cross_entropy_equals_the_weighted_sum_of_two(xi):
    logits, p, y = torch.randn(6, 4), torch.randn(6, 4).softmax(1), torch.arange(6) % 4
    loss = F.cross_entropy(logits, self_distillation_target(p, y, xi))
    log_q = logits.log_softmax(1)
    expected = xi * -(p * log_q).sum(1).mean() + (1 - xi) * -log_q[range(6), y].mean()
    torch.testing.assert_close(loss, expected)


def test_clamped_targets_are_distributions_and_drop_a_disbelieved_label():
    p, y = torch.tensor([[0.1, 0.6, 0.3], [0.6, 0.2, 0.2]]), torch.tensor([0, 0])
    free, held = self_distillation_target(p, y, 1.5), self_distillation_target(p, y, 1.5, clamp=True)
    assert free[0, 0] < 0.0
    torch.testing.assert_close(free.sum(1), torch.ones(2))
    torch.testing.assert_close(held[0], torch.tensor([0.0, 2 / 3, 1 / 3]))
    torch.testing.assert_close(held[1], free[1])  # a label the teacher believes: nothing to clamp


def test_best_xi_of_ridge_matches_monte_carlo_on_the_diabetes_design():
    x = torch.from_numpy(load_diabetes(scaled=False).data)
    x = (x - x.mean(0)) / x.std(0, unbiased=False)
    _, s, vt = torch.linalg.svd(x, full_matrices=False)
    generator = torch.Generator().manual_seed(0)
    theta = torch.randn(10, dtype=torch.float64, generator=generator)
    for sigma in (0.0, 1.0, 5.0, 20.0, 100.0):
        y = x @ theta[:, None] + sigma * torch.randn(len(x), 2000, dtype=torch.float64, generator=generator)
        teacher = ridge(x, y, 100.0)
        again = ridge(x, x @ teacher, 100.0)  # the student at xi is teacher + xi (again - teacher): a parabola in xi
        step, error = again - teacher, teacher - theta[:, None]
        measured = -(step * error).sum() / step.square().sum()
        assert optimal_xi(s, vt @ theta, sigma, 100.0) == pytest.approx(measured.item(), abs=0.05)


def test_best_xi_is_negative_without_noise_and_above_one_with_much():
    s, theta = torch.linspace(1.0, 4.0, 10), torch.ones(10)
    assert optimal_xi(s, theta, 0.0, 5.0) < 0.0
    c = s**2 / (s**2 + 5.0)
    limit = (c**2 * (1 - c) / s**2).sum() / (c**2 * (1 - c) ** 2 / s**2).sum()
    assert optimal_xi(s, theta, 1e4, 5.0) == pytest.approx(limit.item(), rel=1e-4)
    assert limit > 1.0


def test_noisy_digits_want_xi_above_one_and_clean_digits_do_not():
    script = runpy.run_path(str(Path(__file__).parents[2] / "scripts" / "self_distillation_digits.py"))
    (noisy,) = script["table"]([0.5], [1e-2], xis=(1.0, 1.5, 2.0))
    best = max(noisy["xi=1.5"], noisy["xi=2"])
    assert best >= noisy["xi=1"] + 1.0
    assert best >= noisy["teacher"] + 4.0
    (clean,) = script["table"]([0.0], [1e-2], xis=(0.0, 2.0))
    assert clean["xi=2"] < clean["teacher"] - 1.0
    assert clean["xi=0"] == pytest.approx(clean["teacher"], abs=0.01)  # xi = 0 reproduces the teacher


def test_first_generation_is_plain_training_and_xi_zero_stays_so():
    batch = pictures(6)
    plain = make()
    x = plain.views(batch, "weak")[0]
    torch.testing.assert_close(plain.step(batch).loss, F.cross_entropy(plain.head(plain.backbone(x)), batch["y"]))
    second = make(xi=0.0)
    second.next_generation()
    torch.testing.assert_close(second.step(batch).loss, F.cross_entropy(second.head(second.backbone(x)), batch["y"]))


def test_later_generation_equals_the_formula_and_leaves_the_teacher_alone():
    method, batch = make(xi=1.4, clamp=False), pictures(6)
    method.step(batch)  # moves the running statistics
    method.next_generation()
    before = {name: value.clone() for name, value in method.teacher.state_dict().items()}
    out = method.train().step(batch)
    out.loss.backward()
    x = method.views(batch, "weak")[0]
    teacher = method.teacher["head"](method.teacher["backbone"](x)).softmax(1)
    log_q = method.head(method.backbone(x)).log_softmax(1)
    expected = 1.4 * -(teacher * log_q).sum(1).mean() - 0.4 * -log_q[range(6), batch["y"]].mean()
    torch.testing.assert_close(out.loss, expected)
    assert all(torch.equal(before[name], value) for name, value in method.teacher.state_dict().items())
    assert all(p.grad is None for p in method.teacher.parameters())
    assert method.backbone.stem.weight.grad.abs().sum() > 0.0


def test_every_generation_has_a_weight_of_its_own():
    method, batch = make(xi=[1.4, -0.5], generations=3, clamp=False), pictures(6)
    (x,) = method.views(batch, "weak")
    for xi in (1.4, -0.5):
        method.next_generation()
        teacher = method.teacher["head"](method.teacher["backbone"](x)).softmax(1)
        expected = F.cross_entropy(method.head(method.backbone(x)), self_distillation_target(teacher, batch["y"], xi))
        torch.testing.assert_close(method.step(batch).loss, expected)
    with pytest.raises(ValueError, match="one for each of the 2 students"):
        make(xi=[1.0], generations=3)


def test_student_starts_afresh_and_the_old_one_becomes_the_teacher():
    method = make(generations=3)
    start = method.backbone.stem.weight.clone()
    with torch.no_grad():
        method.backbone.stem.weight.add_(1.0)
        method.backbone.norm.running_mean.add_(1.0)
    trained, parameter = method.backbone.stem.weight.clone(), method.backbone.stem.weight
    noise = torch.get_rng_state()
    method.next_generation()
    assert torch.equal(torch.get_rng_state(), noise)  # the run's own numbers go on as they were
    assert torch.equal(method.teacher["backbone"].stem.weight, trained)
    assert method.teacher["backbone"].norm.running_mean.mean() == 1.0
    assert method.backbone.norm.running_mean.abs().max() == 0.0
    assert method.backbone.stem.weight is parameter  # the optimizer keeps hold of it
    first = parameter.clone()
    assert not torch.equal(first, trained)
    assert not torch.equal(first, start)
    method.next_generation()
    assert not torch.equal(method.backbone.stem.weight, first)  # another draw for every generation
    other = make(generations=3)
    other.next_generation()
    assert torch.equal(other.backbone.stem.weight, first)  # and the same draw in every run of a seed


def test_restart_from_the_same_weights():
    method = make(restart="same")
    start = method.backbone.stem.weight.clone()
    with torch.no_grad():
        method.backbone.stem.weight.add_(1.0)
    method.next_generation()
    assert torch.equal(method.backbone.stem.weight, start)


def test_schedule_starts_again_with_every_generation():
    plain = Cosine(warmup=0.0)
    twice = PerGeneration(plain, 2)
    assert [twice(step, 8) for step in range(8)] == [plain(step, 4) for step in [0, 1, 2, 3] * 2]
    assert twice(8, 8) == pytest.approx(0.0)  # after the last step the rate stays down
    assert [twice.part(step, 7) for step in range(8)] == [0, 0, 0, 0, 1, 1, 1, 1]


@pytest.mark.parametrize("wrong", [{"generations": 0}, {"temperature": 0.0}])
def test_nonsense_is_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        make(**wrong)


def test_temperature_softens_the_teacher():
    sharp, soft = make(temperature=1.0), make(temperature=1e6)
    for method in (sharp, soft):
        method.next_generation()
    batch = pictures(6)
    logits = soft.head(soft.backbone(soft.views(batch, "weak")[0]))
    expected = F.cross_entropy(logits, torch.full((6, 3), 1 / 3))
    torch.testing.assert_close(soft.step(batch).loss, expected, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(sharp.step(batch).loss, soft.step(batch).loss)


def test_new_weights_are_the_first_ones_in_another_order_and_frozen_ones_stay():
    method = make()
    method.backbone.norm.weight.requires_grad_(False)
    with torch.no_grad():
        method.initial["backbone"].norm.weight.copy_(torch.arange(8.0))
    method.next_generation()
    ours, first = method.backbone.state_dict(), method.initial["backbone"].state_dict()
    assert torch.equal(ours["norm.weight"], first["norm.weight"])
    for name in ("stem.weight", "out.weight", "out.bias"):
        assert torch.equal(ours[name].flatten().sort().values, first[name].flatten().sort().values)
        assert not torch.equal(ours[name], first[name])
