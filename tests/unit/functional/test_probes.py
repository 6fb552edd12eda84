"""Probes on features whose quality is known."""

from __future__ import annotations

import numpy as np

from ssl_suite.functional.probes import few_shot, knn_accuracy, linear_probe, probe_scores


def blobs(n: int, spread: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Four classes around the corners of a square in 8 dimensions."""
    rng = np.random.default_rng(seed)
    y = np.arange(n) % 4
    centres = np.zeros((4, 8))
    centres[:, :2] = [[3, 3], [3, -3], [-3, 3], [-3, -3]]
    return (centres[y] + rng.normal(0, spread, (n, 8))).astype(np.float32), y


def test_knn_is_the_weighted_vote_written_out() -> None:
    train, y = blobs(60, 3.0, 0)
    test, test_y = blobs(40, 3.0, 1)
    unit = lambda x: x / np.linalg.norm(x, axis=1, keepdims=True)  # noqa: E731
    cosine = unit(test) @ unit(train).T
    right = 0
    for row, truth in zip(cosine, test_y, strict=True):
        near = np.argsort(-row)[:20]
        votes = [np.exp(row[near][y[near] == c] / 0.07).sum() for c in range(4)]
        right += int(np.argmax(votes)) == truth
    assert knn_accuracy(train, y, test, test_y) == right / 40


def test_fewer_samples_than_neighbours() -> None:
    train, y = blobs(4, 0.1, 0)
    test, test_y = blobs(20, 0.1, 1)
    assert knn_accuracy(train, y, test, test_y) == 1.0


def test_probes_order_by_labels_and_separation() -> None:
    train, y = blobs(400, 2.5, 0)
    test, test_y = blobs(400, 2.5, 1)
    scores = probe_scores(train, y, test, test_y)
    assert scores.keys() == {"knn", "probe_1shot", "probe_3shot", "probe_full"}
    assert 0.25 < scores["probe_1shot"] < scores["probe_3shot"] < scores["probe_full"] < 1.0
    assert linear_probe(*blobs(100, 0.1, 0), *blobs(100, 0.1, 1)) == 1.0


def test_few_shot_repeats_by_seed() -> None:
    parts = (*blobs(100, 3.0, 0), *blobs(100, 3.0, 1))
    assert few_shot(*parts, shots=1, draws=3, seed=1) == few_shot(*parts, shots=1, draws=3, seed=1)
    assert few_shot(*parts, shots=1, draws=3, seed=1) != few_shot(*parts, shots=1, draws=3, seed=2)
