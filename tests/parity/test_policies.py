"""Each policy against its rule written out in numpy, over several steps, so that what it remembers is tested too."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from ssl_suite.methods.self_training.fixmatch import FixMatch
from ssl_suite.methods.self_training.policies import (
    UDA,
    AdaMatch,
    Dash,
    EntropyPercentile,
    FixedThreshold,
    FlexMatch,
    FreeMatch,
    SoftMatch,
)
from ssl_suite.methods.self_training.policies.adaptive import even
from tests.parity.tiny import Tiny, gradients, semi, views

K, N, M = 3, 40, 16
STATEFUL = {
    "flexmatch": lambda: FlexMatch(K, N, threshold=0.7), "freematch": lambda: FreeMatch(K, momentum=0.8),
    "softmatch": lambda: SoftMatch(K, momentum=0.8), "adamatch": lambda: AdaMatch(K, momentum=0.8),
    "dash": lambda: Dash(warmup_steps=2, decay_every=1, rho_min=0.3)}
ALL = {**STATEFUL, "fixed": lambda: FixedThreshold(0.7), "uda": UDA, "entropy": EntropyPercentile}


def step(seed: int, m: int = M, skew: float = 0.0) -> dict[str, torch.Tensor]:
    """What a policy gets in a step; classes become surer with the seed."""
    g = torch.Generator().manual_seed(seed)
    bias = torch.tensor([skew, 0.0, 0.0])
    return {"probs": ((1.0 + seed) * torch.randn(m, K, generator=g) + bias).softmax(1),
            "index": torch.randperm(N, generator=g)[:m], "labels": torch.randint(K, (6,), generator=g),
            "labeled_probs": (2.0 * torch.randn(6, K, generator=g) - bias).softmax(1)}


def arrays(given: dict[str, torch.Tensor]) -> tuple[np.ndarray, ...]:
    return tuple(given[name].double().numpy() if given[name].is_floating_point() else given[name].numpy()
                 for name in ("probs", "index", "labeled_probs", "labels"))


def test_threshold_is_inclusive_and_target_is_the_argmax():
    probs = torch.tensor([[0.5, 0.25, 0.25], [0.125, 0.75, 0.125], [0.3, 0.3, 0.4]])
    target, weight = FixedThreshold(0.5)(probs)
    assert target.tolist() == [0, 1, 2]
    assert weight.tolist() == [1.0, 1.0, 0.0]
    assert FixedThreshold(0.0)(probs)[1].tolist() == [1.0, 1.0, 1.0]


def test_uda_sharpens_the_label_and_judges_the_plain_one():
    logits = torch.tensor([[3.0, 0.0, 0.0], [1.0, 0.0, 0.0], [0.0, 2.5, -1.0]])
    target, weight = UDA()(logits.softmax(1))
    torch.testing.assert_close(target, (logits / 0.4).softmax(1))
    assert weight.tolist() == [1.0, 0.0, 1.0]  # 0.91, 0.58 and 0.90; sharpened, the second would reach 0.86
    assert UDA(0.5, 1e-6)(torch.tensor([[1.0, 0.0]]))[0].tolist() == [[1.0, 0.0]]


def test_flexmatch_counts_the_last_sure_class_of_each_sample():
    policy, last, drawn = FlexMatch(K, N, threshold=0.7), {}, set()
    lowered = 0
    for seed in range(6):
        given = step(seed, skew=1.0)
        probs, index, _, _ = arrays(given)
        guess, confidence = probs.argmax(1), probs.max(1)
        counts = [list(last.values()).count(c) for c in range(K)]
        level = np.array(counts) / max(1, *counts, len(drawn) - len(last))
        threshold = 0.7 * level[guess] / (2 - level[guess])
        target, weight = policy(**given)
        assert target.tolist() == guess.tolist()
        assert weight.tolist() == (confidence >= threshold).tolist()
        lowered += int((weight.numpy() > (confidence >= 0.7)).sum())
        drawn |= set(index.tolist())
        last |= {i: c for i, c, p in zip(index, guess, confidence, strict=True) if p >= 0.7}
    assert lowered > 0  # the control: a fixed threshold would have dropped these
    assert {i: int(c) for i, c in enumerate(policy.learnt[:-1]) if c >= 0} == {int(i): int(c) for i, c in last.items()}


def test_flexmatch_lets_the_sure_view_of_a_sample_drawn_twice_win():
    probs = torch.tensor([[0.9, 0.1, 0.0], [0.4, 0.6, 0.0]])
    for order in ([0, 1], [1, 0]):
        policy = FlexMatch(K, N, threshold=0.7)
        policy(probs[order], index=torch.tensor([5, 5]))
        assert policy.learnt[5] == 0
        assert (policy.learnt[:-1] != -2).sum() == 1


def test_freematch_moves_its_means_then_judges():
    policy = FreeMatch(K, momentum=0.8)
    tau, p, h = 1 / K, np.full(K, 1 / K), np.full(K, 1 / K)
    kept = []
    for seed in range(5):
        given = step(seed, skew=1.0)
        probs, guess = arrays(given)[0], arrays(given)[0].argmax(1)
        tau = 0.8 * tau + 0.2 * probs.max(1).mean()
        p = 0.8 * p + 0.2 * probs.mean(0)
        h = 0.8 * h + 0.2 * np.bincount(guess, minlength=K) / M
        target, weight = policy(**given)
        assert target.tolist() == guess.tolist()
        assert weight.tolist() == (probs.max(1) >= tau * p[guess] / p.max()).tolist()
        kept.append(weight.mean().item())
    np.testing.assert_allclose([policy.confidence, *policy.probs, *policy.guesses], [tau, *p, *h], rtol=1e-5)
    assert 0.0 < min(kept) < 1.0


def test_freematch_fairness_equals_the_formula_and_its_gradient_pulls_towards_evenness():
    policy = FreeMatch(K, momentum=0.8, fairness_weight=0.3)
    for seed in range(3):
        policy(**step(seed, skew=1.0))
    logits = torch.randn(8, K, generator=torch.Generator().manual_seed(1)).requires_grad_()
    weight = torch.tensor([1.0, 1, 0, 1, 1, 0, 1, 1])
    penalty = policy.penalty(logits, weight)
    strong = logits.detach().double().softmax(1).numpy()[weight.bool().numpy()]
    share = np.bincount(strong.argmax(1), minlength=K) / len(strong)
    ratio_a = policy.probs.double().numpy() / policy.guesses.double().numpy()
    ratio_b = np.divide(strong.mean(0), share, out=np.zeros(K), where=share > 0)
    fairness = (ratio_a / ratio_a.sum() * np.log(ratio_b / ratio_b.sum() + 1e-12)).sum()
    assert penalty.item() == pytest.approx(0.3 * fairness, rel=1e-5)
    assert fairness < 0.0
    penalty.backward()
    assert logits.grad[weight.bool()].abs().sum() > 0
    assert logits.grad[~weight.bool()].abs().sum() == 0


@pytest.mark.parametrize("weight", [torch.zeros(4), torch.ones(4)])
def test_freematch_fairness_is_finite_with_nothing_kept_and_with_one_class(weight):
    policy = FreeMatch(K)
    logits = torch.tensor([[9.0, 0.0, 0.0]] * 4).requires_grad_()
    penalty = policy.penalty(logits, weight)
    penalty.backward()
    assert penalty.isfinite()
    assert logits.grad.isfinite().all()
    assert (penalty == 0) == (weight.sum() == 0)
    assert even(torch.tensor([0.2, 0.8]), torch.tensor([0.0, 0.5])).tolist() == [0.0, 1.0]


def aligned(probs: np.ndarray, target: np.ndarray, mean: np.ndarray) -> np.ndarray:
    rows = probs * (target + 1e-6) / (mean + 1e-6)
    return rows / rows.sum(1, keepdims=True)


def test_softmatch_weighs_aligned_confidence_and_labels_by_the_plain_guess():
    policy, mean, mu, var = SoftMatch(K, momentum=0.8), None, 1 / K, 1.0
    changed = 0
    for seed in range(5):
        given = step(seed, skew=1.0)
        probs = arrays(given)[0]
        mean = probs.mean(0) if mean is None else 0.8 * mean + 0.2 * probs.mean(0)
        rows = aligned(probs, np.full(K, 1 / K), mean)
        confidence = rows.max(1)
        mu, var = 0.8 * mu + 0.2 * confidence.mean(), 0.8 * var + 0.2 * confidence.var(ddof=1)
        target, weight = policy(**given)
        assert target.tolist() == probs.argmax(1).tolist()
        changed += (rows.argmax(1) != probs.argmax(1)).sum()
        np.testing.assert_allclose(weight, np.exp(-np.minimum(confidence - mu, 0) ** 2 / (2 * var / 4)), rtol=1e-4)
    np.testing.assert_allclose([policy.mean, policy.variance, *policy.align.mean], [mu, var, *mean], rtol=1e-5)
    assert changed > 0  # the control: labels of the aligned guesses would differ


def test_adamatch_aligns_to_the_labelled_rows_and_asks_for_a_share_of_their_confidence():
    policy, mean, goal = AdaMatch(K, momentum=0.8), None, np.full(K, 1 / K)
    kept, changed = 0.0, 0
    for seed in range(5):
        given = step(seed, skew=1.0)
        probs, _, labeled, _ = arrays(given)
        mean = probs.mean(0) if mean is None else 0.8 * mean + 0.2 * probs.mean(0)
        goal = 0.8 * goal + 0.2 * labeled.mean(0)
        rows = aligned(probs, goal, mean)
        target, weight = policy(**given)
        assert target.tolist() == rows.argmax(1).tolist()
        assert weight.tolist() == (rows.max(1) >= 0.95 * labeled.max(1).mean()).tolist()
        kept += weight.mean().item() / 5
        changed += (rows.argmax(1) != probs.argmax(1)).sum()
    np.testing.assert_allclose([*policy.align.mean, *policy.align.target], [*mean, *goal], rtol=1e-5)
    assert 0.0 < kept < 1.0
    assert changed > 0


def test_dash_warms_up_on_labels_then_lets_its_bound_fall():
    policy, rho_0 = Dash(warmup_steps=3, decay_every=2, gamma=2.0, rho_min=0.25), 0.0
    bounds, hard = [], []
    for t in range(16):
        given = step(t % 3)
        probs, _, labeled, labels = arrays(given)
        loss = -np.log(labeled[range(6), labels]).mean()
        if t < 3:
            rho_0 += max(1 / (t + 1), 0.1) * (loss - rho_0)
        rho = max(1.0001 * 2.0 ** -(max(t - 3, 0) // 2) * rho_0, 0.25)
        sharp = probs**2 / (probs**2).sum(1, keepdims=True)
        expected = np.eye(K)[probs.argmax(1)] if rho <= 0.25 else sharp
        target, weight = policy(**given)
        np.testing.assert_allclose(target, expected, rtol=1e-4, atol=1e-6)
        own = -(expected * np.log(probs)).sum(1)
        assert weight.tolist() == ((own <= rho) & (t >= 3)).astype(float).tolist()
        bounds.append(rho)
        hard.append(rho <= 0.25)
    assert bounds[3] == bounds[4] > bounds[5] > bounds[-1] == 0.25
    assert not hard[3]
    assert hard[-1]


@pytest.mark.parametrize("name", STATEFUL)
def test_state_round_trip_goes_on_the_same_way(name):
    policy, fresh = STATEFUL[name](), STATEFUL[name]()
    for seed in range(4):
        policy(**step(seed, skew=1.0))
    state = copy.deepcopy(policy.state_dict())
    assert state
    twin = STATEFUL[name]()
    twin.load_state_dict(state)
    expected = policy(**step(9))
    for ours, theirs in zip(twin(**step(9)), expected, strict=True):
        assert torch.equal(ours, theirs)
    fresh(**step(9))
    assert any(not torch.equal(a, b) for a, b in zip(twin.state_dict().values(), fresh.state_dict().values(), strict=True))


@pytest.mark.parametrize("name", ALL)
def test_rows_may_be_pixels_and_weights_are_not_learnt(name):
    policy = ALL[name]()
    given = step(1, m=N if name == "flexmatch" else 2 * 5 * 7)
    target, weight = policy(**given)
    assert weight.shape == target.shape[:1] == given["probs"].shape[:1]
    assert not weight.requires_grad
    assert not list(policy.parameters())
    assert weight.min() >= 0.0
    assert weight.max() <= 1.0


@pytest.mark.parametrize("name", ALL)
def test_fixmatch_takes_every_policy(name):
    torch.manual_seed(0)
    method, batch = FixMatch(Tiny(), views(0.3, 1.0), num_classes=K, policy=ALL[name]()), semi()
    batch["unlabeled"]["index"] %= N
    kept = 0.0
    for _ in range(4):
        method.zero_grad()
        out = method.step(batch)
        (out.loss - out.logs["loss_sup"]).backward()
        kept += out.logs["mask_ratio"].item()
    assert all(grad.isfinite().all() for grad in gradients(method).values())
    extra = 0.001 if name == "freematch" else 0.0
    rest = out.loss.detach() - out.logs["loss_sup"] - out.logs["loss_unsup"]
    assert (rest.abs() > 1e-7) == (extra > 0), "only FreeMatch adds a term of its own"
    assert name in ("fixed", "uda") or kept > 0.0


@pytest.mark.parametrize(("make", "message"), [
    (lambda: FixedThreshold(95), r"policy\.threshold .* 95"), (lambda: UDA(temperature=0.0), r"policy\.temperature .* 0\.0"),
    (lambda: FlexMatch(K, 0), r"policy\.num_samples=0"), (lambda: FreeMatch(K, momentum=1.5), r"policy\.momentum .* 1\.5"),
    (lambda: SoftMatch(K, n_sigma=0.0), r"policy\.n_sigma .* 0\.0"),
    (lambda: AdaMatch(K, momentum=-1.0), r"policy\.momentum .* -1"),
    (lambda: AdaMatch(K, threshold=2.0), r"policy\.threshold .* 2"), (lambda: Dash(gamma=1.0), r"policy\.gamma .* 1\.0"),
    (lambda: Dash(warmup_steps=0), r"policy\.warmup_steps .* 0"),
    (lambda: FlexMatch(K, N)(step(0)["probs"]), "index"),
    (lambda: FlexMatch(K, 2)(torch.eye(K), torch.arange(K)), r"remembers 2 samples .*policy\.num_samples"),
    (lambda: FlexMatch(K, 2)(torch.eye(K), torch.arange(K) + 5), r"remembers 2 samples and a step brings one beyond"),
    (lambda: AdaMatch(K)(step(0)["probs"]), "labeled_probs"),
    (lambda: Dash()(step(0)["probs"], labeled_probs=step(0)["labeled_probs"]), "labels")])
def test_bad_input_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
