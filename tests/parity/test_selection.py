"""Rules over pseudo-labels against their definitions written out."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from ssl_suite.functional import selection


def votes(n: int = 60, classes: int = 3, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).dirichlet(np.full(classes, 0.7), n)


def bound(v: np.ndarray, posterior: np.ndarray, k: int, theta: float, grid: int) -> float:
    """The multi-class transductive bound of a class and a threshold, sample by sample."""
    n, classes = v.shape
    guess, total = v.argmax(1), 0.0
    for i in range(classes):
        u = sum(posterior[x, i] for x in range(n))
        if i == k or u == 0:
            continue
        mass = sum(posterior[x, i] * v[x, k] for x in range(n) if guess[x] == k) / u
        least = np.inf
        for step in range(1, grid + 1):
            gamma = theta + (1 - theta) * step / grid
            inside = [x for x in range(n) if theta <= v[x, k] < gamma]
            share = sum(posterior[x, i] for x in inside) / u
            moment = sum(posterior[x, i] * v[x, k] for x in inside) / u
            least = min(least, share + max(mass - moment, 0.0) / gamma)
        total += u / n * least
    kept = np.mean([v[x, k] >= theta and guess[x] == k for x in range(n)])
    return total / kept if kept else np.inf


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("own", [True, False])
def test_transductive_thresholds_minimise_the_bound(seed: int, own: bool) -> None:
    v, grid = votes(seed=seed), 6
    posterior = v if own else votes(seed=seed + 10)
    found = selection.transductive_thresholds(v, None if own else posterior, grid)
    for k in range(3):
        thetas = np.linspace(v[:, k].min(), v[:, k].max(), grid, endpoint=False)
        values = [bound(v, posterior, k, theta, grid) for theta in thetas]
        assert found[k] == pytest.approx(thetas[int(np.argmin(values))])


def test_a_class_without_mass_is_never_kept() -> None:
    v = np.concatenate([votes(), np.zeros((60, 1))], axis=1)
    assert selection.transductive_thresholds(v)[3] == 1.0


def test_rules_by_definition() -> None:
    p = votes()
    first = p.max(1)
    assert np.array_equal(selection.fixed(p, 0.7), first > 0.7)
    assert np.array_equal(selection.above_mean(p), first >= first.mean())
    assert np.array_equal(selection.margin(p, 0.3), np.array([sorted(row)[-1] - sorted(row)[-2] >= 0.3 for row in p]))
    assert set(np.flatnonzero(selection.top(p, 0.25))) == set(np.argsort(-first)[:15])
    assert [selection.curriculum(p, turn).sum() for turn in (1, 3, 5, 9)] == [12, 36, 60, 60]
    assert selection.random(p, 0.5, seed=1).sum() == 30


def test_a_score_goes_before_the_confidence() -> None:
    p, score = votes(), np.repeat([0.0, 1.0], 30)
    kept = selection.top(p, 0.25, score)
    assert not kept[:30].any()
    assert set(np.flatnonzero(kept)) == set(30 + np.argsort(-p[30:].max(1))[:15])


def test_entropy_and_certainty() -> None:
    assert selection.certainty(np.array([[1.0, 0.0], [0.5, 0.5]])) == pytest.approx([1.0, 0.0])
    assert selection.entropy(np.full((1, 4), 0.25)) == pytest.approx([np.log(4)])


@pytest.mark.parametrize(("rule", "number"), [(selection.fixed, 1.5), (selection.top, -0.1), (selection.margin, 2.0)])
def test_numbers_outside_are_refused(rule: Callable[..., np.ndarray], number: float) -> None:
    with pytest.raises(ValueError, match="must lie in"):
        rule(votes(), number)
