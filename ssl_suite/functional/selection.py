"""Which pseudo-labels to believe: rules over the class probabilities of all unlabelled samples at once.

Each takes probabilities (N, K), rows that sum to 1, and returns the kept ones, (N,) bool. None of them sees a label. The rules
are those of the survey of Amini et al., "Self-Training: A Survey", arXiv 2202.12040; ranks break ties by position.
"""

from __future__ import annotations

import numpy as np


def fixed(probs: np.ndarray, threshold: float = 0.75) -> np.ndarray:
    """Those whose highest probability lies above a threshold (scikit-learn's rule and default)."""
    in_range("threshold", threshold, 0.0, 1.0)
    return probs.max(1) > threshold


def above_mean(probs: np.ndarray) -> np.ndarray:
    """Those whose highest probability is at least the mean of all."""
    confidence = probs.max(1)
    return confidence >= confidence.mean()


def margin(probs: np.ndarray, threshold: float = 0.3) -> np.ndarray:
    """Those whose highest probability exceeds the second by at least ``threshold``."""
    in_range("threshold", threshold, 0.0, 1.0)
    second, first = np.sort(probs, axis=1)[:, -2:].T
    return first - second >= threshold


def top(probs: np.ndarray, share: float = 0.2, score: np.ndarray | None = None) -> np.ndarray:
    """The most confident share of all, at least one.

    Args:
        probs: probabilities, (N, K).
        share: share to keep, in [0, 1].
        score: what to rank by, (N,), before the confidence, which then breaks ties; None ranks by the confidence alone.
    """
    in_range("share", share, 0.0, 1.0)
    confidence = probs.max(1)
    order = np.lexsort((-confidence,) if score is None else (-confidence, -score))
    kept = np.zeros(len(probs), bool)
    kept[order[: max(1, round(share * len(probs))) if share else 0]] = True
    return kept


def curriculum(probs: np.ndarray, turn: int, step: float = 0.2, score: np.ndarray | None = None) -> np.ndarray:
    """In turn t, counted from 1, the share t * step (Cascante-Bonilla et al., AAAI 2021); training starts anew each time."""
    return top(probs, min(1.0, turn * step), score)


def random(probs: np.ndarray, share: float = 0.1, seed: int = 0) -> np.ndarray:
    """A random share, as a control."""
    in_range("share", share, 0.0, 1.0)
    return np.isin(np.arange(len(probs)), np.random.default_rng(seed).permutation(len(probs))[: round(share * len(probs))])


def transductive(probs: np.ndarray, posterior: np.ndarray | None = None, grid: int = 50) -> np.ndarray:
    """Those above the threshold of their class that minimises a bound on the error among the kept (MSTA)."""
    return probs.max(1) >= transductive_thresholds(probs, posterior, grid)[probs.argmax(1)]


def transductive_thresholds(votes: np.ndarray, posterior: np.ndarray | None = None, grid: int = 50) -> np.ndarray:
    """Thresholds (K,) of the multi-class transductive bound (Feofanov, Devijver and Amini, AAAI 2019).

    For class k and theta, the bound on the chance that a sample of class i is wrongly kept for k is the least value over gamma
    of I + max(K - M, 0) / gamma, with K the mass of votes for k among samples given to k, I the share of samples with a vote in
    [theta, gamma) and M their mass; all of them means over class i by the posterior. Sums over an interval come from prefix
    sums of sorted votes, so the grid costs no pass over the samples.

    Args:
        votes: votes for each class, (N, K).
        posterior: probability of each class, (N, K); the votes themselves by default.
        grid: values of theta, and of gamma for each.

    Returns:
        1 for a class that no posterior mass or no prediction falls to.
    """
    posterior = votes if posterior is None else posterior
    predicted, mass = votes.argmax(1), posterior.sum(0)
    present = mass > 0
    thresholds = np.ones(votes.shape[1])
    for k in np.flatnonzero(present):
        order = np.argsort(votes[:, k], kind="stable")
        v, weights = votes[order, k], posterior[order] / np.where(present, mass, 1.0)
        counts = np.concatenate([np.zeros((1, len(mass))), weights.cumsum(0)])
        masses = np.concatenate([np.zeros((1, len(mass))), (weights * v[:, None]).cumsum(0)])
        thetas = np.linspace(v[0], v[-1], grid, endpoint=False)
        gammas = thetas[:, None] + (1.0 - thetas[:, None]) * np.arange(1, grid + 1) / grid
        low, high = np.searchsorted(v, thetas)[:, None], np.searchsorted(v, gammas)
        total = (weights * (v * (predicted[order] == k))[:, None]).sum(0)
        risk = counts[high] - counts[low] + np.maximum(total - masses[high] + masses[low], 0.0) / gammas[..., None]
        share = np.array([((v >= theta) & (predicted[order] == k)).mean() for theta in thetas])
        others = np.where(np.arange(len(mass)) == k, 0.0, mass / len(votes))
        bound = np.divide(risk.min(1) @ others, share, out=np.full(grid, np.inf), where=share > 0)
        if np.isfinite(bound).any():
            thresholds[k] = thetas[bound.argmin()]
    return thresholds


def certainty(probs: np.ndarray) -> np.ndarray:
    """1 - H / ln K of each row, in [0, 1]: 1 for a sure guess, 0 for a uniform one, (N,)."""
    return 1.0 - entropy(probs) / np.log(probs.shape[1])


def entropy(probs: np.ndarray) -> np.ndarray:
    """Entropy of each distribution in nats, (N,)."""
    return -np.where(probs > 0, probs * np.log(np.where(probs > 0, probs, 1.0)), 0.0).sum(-1)


def in_range(name: str, value: float, low: float, high: float) -> None:
    """Refuse a number outside [low, high]; ValueError."""
    if not low <= value <= high:
        raise ValueError(f"{name}={value} must lie in [{low:g}, {high:g}]")
