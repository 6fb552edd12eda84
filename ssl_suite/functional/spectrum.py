"""How does a representation fill its space? Figures that need no labels. All take float arrays on the CPU, features last.

They compare checkpoints and settings of one method; between methods, and for noise, which fills any space, they say little
(Balestriero et al., "A Cookbook of Self-Supervised Learning", arXiv 2304.12210).
"""

from __future__ import annotations

import numpy as np


def effective_rank(weights: np.ndarray, eps: float) -> float:
    """exp(H(p)), p the weights (D,) of the directions divided by their sum, plus ``eps``."""
    p = weights / max(weights.sum(), np.finfo(float).tiny) + eps
    return float(np.exp(-(p * np.log(p)).sum()))


def rankme(features: np.ndarray, eps: float = 1e-7) -> float:
    """Effective rank of features (N, D), by their singular values (RankMe, Garrido et al., ICML 2023, arXiv 2210.02885).

    Features are not centred, as in the paper. Below N = 10 D the figure is bounded by the sample rather than by the space.

    Args:
        features: one row per sample.
        eps: added to each share.

    Returns:
        A number from 1 to min(N, D); what ``eps`` adds is of the order of D * eps.
    """
    return effective_rank(np.linalg.svd(features, compute_uv=False), eps)


def alpha_req(features: np.ndarray, first: int = 10, last: int = 1000) -> tuple[float, float]:
    """Decay of the spectrum: the i-th eigenvalue of the covariance falls as i^-alpha (Agrawal et al., NeurIPS 2022, alpha-ReQ).

    Near 1 is what good representations were found to have; less is flat, more is steep.

    Deviations: eigenvalues below the numerical rank, those of constant channels among them, are left out of the line, since
    their logarithms are noise. Where the line begins and ends is a choice, and changes the figure.

    Args:
        features: (N, D), one row per sample; centred here.
        first: the first eigenvalue on the line, counted from 1.
        last: the last one at most.

    Returns:
        alpha, and the share R^2 of the variance of the logarithms that the line explains. Both are NaN with fewer than three
        eigenvalues to draw it through.
    """
    s = np.linalg.svd(features - features.mean(0), compute_uv=False)
    s = s[s > s[0] * max(features.shape) * np.finfo(features.dtype).eps]
    order = np.arange(first, min(last, len(s)) + 1)
    if len(order) < 3:
        return float("nan"), float("nan")
    x, y = np.log(order), 2.0 * np.log(s[order - 1])  # the eigenvalues are squares, up to a factor that moves the line only
    slope, start = np.polyfit(x, y, 1)
    return float(-slope), float(1.0 - (y - slope * x - start).var() / y.var())


def lidar(features: np.ndarray, delta: float = 1e-4, eps: float = 1e-8) -> float:
    """Effective rank of what tells objects apart, measured in what views of one object differ by.

    LiDAR, Thilak et al., ICLR 2024, arXiv 2312.04000.

    Args:
        features: (n, q, D): q views of each of n objects. Views in any other order give nonsense.
        delta: added to the within-object variances.
        eps: added to each share.

    Returns:
        A number from 1 to min(n - 1, D).

    Raises:
        ValueError: the array has not three dimensions, or fewer than two objects or views.
    """
    if features.ndim != 3 or min(features.shape[:2]) < 2:
        raise ValueError(f"lidar needs features (objects, views, D) with two of each at least, got {features.shape}")
    n, q, width = features.shape
    means = features.mean(1, dtype=np.float64)
    apart = (features - means[:, None]).reshape(-1, width)
    within = apart.T @ apart / (n * (q - 1)) + delta * np.eye(width)
    centred = means - means.mean(0)
    values, vectors = np.linalg.eigh(within)
    whitened = centred @ vectors / np.sqrt(values)  # M of the paper is whitened.T @ whitened / (n - 1)
    return effective_rank(np.linalg.svd(whitened, compute_uv=False) ** 2, eps)


def on_sphere(features: np.ndarray) -> np.ndarray:
    """Features of length 1."""
    return features / np.maximum(np.linalg.norm(features, axis=-1, keepdims=True), 1e-12)


def alignment(first: np.ndarray, second: np.ndarray) -> float:
    """Mean squared distance on the sphere between two views (N, D) of the same samples.

    Wang and Isola, ICML 2020, arXiv 2005.10242.

    Returns:
        A number from 0 to 4; small is aligned.
    """
    return float(np.square(on_sphere(first) - on_sphere(second)).sum(-1).mean())


def uniformity(features: np.ndarray, t: float = 2.0) -> float:
    """Logarithm of the mean of exp(-t |x - y|^2) over pairs of samples on the sphere.

    Wang and Isola, ICML 2020, arXiv 2005.10242.

    Args:
        features: (N, D), N at least 2.
        t: sharpness.

    Returns:
        A number up to 0, which is one point; small is spread out.
    """
    x = on_sphere(features)
    distances = 2.0 - 2.0 * (x @ x.T)[np.triu_indices(len(x), 1)]
    return float(np.log(np.exp(-t * distances).mean()))
