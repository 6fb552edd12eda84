"""Arithmetic of self-distillation (Das and Sanghavi, ICML 2023, arXiv 2301.13304).

The paper's weight xi may leave [0, 1]. Above 1 the given label counts negatively: the student is pushed away from
labels that the teacher does not believe, which pays when many labels are wrong.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def self_distillation_target(p_teacher: Tensor, y: Tensor, xi: float, clamp: bool = False) -> Tensor:
    """The target xi * teacher + (1 - xi) * label: one cross-entropy against it is the paper's weighted sum of two.

    Args:
        p_teacher: the teacher's probabilities, (B, K).
        y: given labels, (B,) int64.
        xi: weight of the teacher; any real number.
        clamp: set negative entries to 0 and let rows sum to 1 again. For xi > 1 an entry is negative where the
            teacher gives the label less than (xi - 1) / xi; unclamped, that sample's loss has no lower bound and weight
            decay must hold the student.

    Returns:
        Targets (B, K) with rows that sum to 1.
    """
    target = xi * p_teacher + (1.0 - xi) * F.one_hot(y, p_teacher.shape[1]).to(p_teacher.dtype)
    return F.normalize(target.clamp_min(0.0), p=1.0, dim=1) if clamp else target


def optimal_xi(singular_values: Tensor, coefficients: Tensor, sigma: float, decay: float) -> Tensor:
    """The xi of least squared error of ridge self-distillation on a fixed design X = U S V^T.

    With c_j = s_j^2 / (s_j^2 + decay) the student's j-th coordinate is c_j (1 - xi (1 - c_j)) (theta_j + e_j / s_j),
    so that the expected error is a parabola in xi.

    Args:
        singular_values: s, (R,), all above 0.
        coefficients: true weights in the basis V, (R,).
        sigma: standard deviation of the label noise.
        decay: ridge penalty, above 0; the same for teacher and student.

    Returns:
        Scalar; below 0 without noise (sharpening pays), above 1 with much of it.
    """
    c = singular_values**2 / (singular_values**2 + decay)
    noise, signal = sigma**2 / singular_values**2, coefficients**2
    gain = c * (1.0 - c) * (c * noise - (1.0 - c) * signal)
    return gain.sum() / (c**2 * (1.0 - c) ** 2 * (signal + noise)).sum()


def ridge(x: Tensor, y: Tensor, decay: float) -> Tensor:
    """Weights that minimise |x theta - y|^2 + decay |theta|^2, without an intercept.

    Args:
        x: design, (N, D).
        y: targets, (N,) or (N, R) for several at once.
        decay: penalty, above 0.

    Returns:
        Weights (D,) or (D, R).
    """
    gram = x.T @ x + decay * torch.eye(x.shape[1], dtype=x.dtype, device=x.device)
    return torch.linalg.solve(gram, x.T @ y)
