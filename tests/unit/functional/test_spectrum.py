"""Figures of a spectrum on features whose spectrum is known."""

from __future__ import annotations

import numpy as np
import pytest

from ssl_suite.functional.spectrum import alignment, alpha_req, lidar, rankme, uniformity

RNG = np.random.default_rng(0)


def test_rankme_counts_directions() -> None:
    q = np.linalg.qr(RNG.normal(size=(200, 6)))[0]
    assert rankme(q) == pytest.approx(6.0, rel=1e-3)
    assert rankme(q[:, :1] @ np.ones((1, 6))) == pytest.approx(1.0, abs=0.01)
    assert rankme(np.zeros((50, 6))) == pytest.approx(1.0, abs=0.01)


def test_rankme_of_noise_is_full_and_of_three_directions_three() -> None:
    """Full rank is necessary, not sufficient: noise has it."""
    assert 0.95 * 64 <= rankme(RNG.normal(size=(6400, 64)).astype(np.float32)) <= 64.01
    three = (RNG.normal(size=(640, 3)) @ RNG.normal(size=(3, 64))).astype(np.float32)
    assert 2.0 < rankme(three) <= 3.01


@pytest.mark.parametrize("alpha", [0.5, 1.0, 2.0])
def test_alpha_of_a_power_law(alpha: float) -> None:
    spectrum = np.arange(1, 201) ** (-alpha / 2)
    features = np.linalg.qr(RNG.normal(size=(2000, 200)))[0] * spectrum
    found, explained = alpha_req(features.astype(np.float32))
    assert found == pytest.approx(alpha, abs=0.05)
    assert explained > 0.99


def test_alpha_leaves_out_dead_channels() -> None:
    features = np.linalg.qr(RNG.normal(size=(2000, 100)))[0] / np.arange(1, 101)
    dead = np.concatenate([features, np.ones((2000, 50))], axis=1).astype(np.float32)
    assert alpha_req(dead)[0] == pytest.approx(2.0, abs=0.05)
    assert np.isnan(alpha_req(dead[:, -50:])).all()
    assert np.isnan(alpha_req(dead[:, :11])).all()


def grouped(means: np.ndarray, q: int, spread: float) -> np.ndarray:
    """q views of each object, whose mean is exact."""
    noise = RNG.normal(0, spread, (len(means), q, means.shape[1]))
    return means[:, None] + noise - noise.mean(1, keepdims=True)


def test_lidar_of_objects_on_a_line_is_one() -> None:
    line = RNG.normal(size=(300, 1)) @ RNG.normal(size=(1, 16))
    assert 1.0 <= lidar(grouped(line, 10, 0.3)) <= 1.01


def test_lidar_counts_directions_that_tell_objects_apart() -> None:
    means = np.zeros((300, 16))
    means[:, :4] = np.linalg.qr(RNG.normal(size=(300, 4)))[0] * 20
    features = grouped(means, 10, 0.3)
    assert lidar(features) == pytest.approx(4.0, abs=0.1)
    shuffled = RNG.permutation(features.reshape(-1, 16)).reshape(features.shape)
    assert lidar(shuffled) > 8.0, "the control: views of mixed objects give another figure"


def test_lidar_is_the_definition_written_out() -> None:
    z = RNG.normal(size=(20, 5, 3)) + RNG.normal(size=(20, 1, 3))
    means, delta, eps = z.mean(1), 1e-4, 1e-8
    between = sum(np.outer(m - means.mean(0), m - means.mean(0)) for m in means) / 19
    within = sum(np.outer(v - means[i], v - means[i]) for i in range(20) for v in z[i]) / 80 + delta * np.eye(3)
    values, vectors = np.linalg.eigh(within)
    root = vectors @ np.diag(values**-0.5) @ vectors.T
    p = np.linalg.eigvalsh(root @ between @ root)
    p = p / p.sum() + eps
    assert lidar(z) == pytest.approx(np.exp(-(p * np.log(p)).sum()), rel=1e-9)


@pytest.mark.parametrize("shape", [(10, 4), (1, 4, 3), (10, 1, 3)])
def test_lidar_refuses_what_is_not_grouped(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"objects, views, D.*got"):
        lidar(np.ones(shape))


def test_alignment_and_uniformity_at_their_ends() -> None:
    x = RNG.normal(size=(2000, 8))
    assert alignment(x, 3.0 * x) == pytest.approx(0.0, abs=1e-12)
    assert alignment(x, -x) == pytest.approx(4.0)
    assert alignment(x, RNG.normal(size=x.shape)) == pytest.approx(2.0, abs=0.1)
    assert uniformity(np.ones((10, 8))) == pytest.approx(0.0, abs=1e-12)
    assert uniformity(np.array([[1.0, 0.0], [-2.0, 0.0]])) == pytest.approx(-8.0)
    assert uniformity(x) < uniformity(x + 2.0) < uniformity(x + 9.0)
