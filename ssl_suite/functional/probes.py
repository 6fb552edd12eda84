"""How good is a representation? Probes on cached features. All take float arrays (N, D) on the CPU."""

from __future__ import annotations

import warnings

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler


def knn_accuracy(train: np.ndarray, y: np.ndarray, test: np.ndarray, test_y: np.ndarray, k: int = 20,
                 temperature: float = 0.07) -> float:
    """Weighted nearest-neighbour accuracy: cosine similarity, weights exp(cos / T) (Wu et al., CVPR 2018, section 3.4).

    Args:
        train: features (N, D) with classes y (N,).
        y: classes.
        test: features (M, D) with classes test_y (M,).
        test_y: classes.
        k: neighbours; at most N are used.
        temperature: T.

    Returns:
        Share of right answers, in [0, 1].
    """
    bank = F.normalize(torch.from_numpy(train).float(), dim=1)
    classes = torch.from_numpy(y)
    right = 0
    for queries, truth in zip(torch.from_numpy(test).float().split(4096), torch.from_numpy(test_y).split(4096), strict=True):
        similarity, neighbours = (F.normalize(queries, dim=1) @ bank.T).topk(min(k, len(bank)), dim=1)
        votes = torch.zeros(len(queries), int(classes.max()) + 1)
        votes.scatter_add_(1, classes[neighbours], ((similarity - 1.0) / temperature).exp())
        right += int((votes.argmax(1) == truth).sum())
    return right / len(test_y)


def linear_probe(train: np.ndarray, y: np.ndarray, test: np.ndarray, test_y: np.ndarray, C: float = 1.0) -> float:
    """Accuracy of logistic regression on standardised features."""
    scaler = StandardScaler().fit(train)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        probe = LogisticRegression(C=C, max_iter=300).fit(scaler.transform(train), y)
    return float(probe.score(scaler.transform(test), test_y))


def few_shot(train: np.ndarray, y: np.ndarray, test: np.ndarray, test_y: np.ndarray, shots: int, draws: int = 10,
             seed: int = 0) -> float:
    """Mean accuracy of `linear_probe` over random draws of ``shots`` labels per class.

    The scaler sees the drawn samples' features only through their whole unlabelled set, as the protocol of
    few-label evaluation allows.
    """
    scaler = StandardScaler().fit(train)
    train, test = scaler.transform(train), scaler.transform(test)
    scores = []
    for draw in range(draws):
        rng = np.random.default_rng((seed, shots, draw))
        chosen = np.concatenate([rng.permutation(np.flatnonzero(y == c))[:shots] for c in np.unique(y)])
        probe = LogisticRegression(max_iter=300).fit(train[chosen], y[chosen])
        scores.append(probe.score(test, test_y))
    return float(np.mean(scores))


def probe_scores(train: np.ndarray, y: np.ndarray, test: np.ndarray, test_y: np.ndarray, seed: int = 0) -> dict[str, float]:
    """The four probes of the run summary: ``knn``, ``probe_1shot``, ``probe_3shot``, ``probe_full``."""
    return {
        "knn": knn_accuracy(train, y, test, test_y),
        "probe_1shot": few_shot(train, y, test, test_y, shots=1, seed=seed),
        "probe_3shot": few_shot(train, y, test, test_y, shots=3, seed=seed),
        "probe_full": linear_probe(train, y, test, test_y),
    }
