"""Losses and a closed form that know samples only by who is akin to whom."""

from __future__ import annotations

import numpy as np
import torch.nn.functional as F
from torch import Tensor

from ssl_suite.functional.distributed import gather
from ssl_suite.functional.precision import full_precision


@full_precision
def vic2_loss(z: Tensor, component: Tensor) -> Tensor:
    """Mean square of Z Z^T - A G over all pairs of the A rows, in float32: VICReg on a graph (PAL, arXiv 2303.15256).

    G_ij is 1 / (size of the component) within a component and 0 across: a projection, so that a large component weighs no more
    than a small one. Up to a constant the value is |Z^T Z / A - I|^2, variance and covariance, plus the mean over rows of the
    mean squared distance to the own component, invariance. The factor A lets embeddings have unit variance at the minimum,
    whatever the batch.

    Args:
        z: embeddings, (B, D), several views of a sample as rows of their own; A = B over all processes.
        component: what each row belongs to, (B,).

    Returns:
        Scalar: the mean over this process's rows, against the rows of all processes.
    """
    z = z.float()
    akin = (component[:, None] == gather(component)).float()
    return (z @ gather(z).T - akin / akin.mean(1, keepdim=True)).square().mean()


@full_precision
def graph_barlow_loss(z: Tensor, component: Tensor, off_diagonal: float) -> Tensor:
    """Barlow Twins on a graph: |Z^T G Z / A - I|^2 with standard columns, in float32 (PAL, arXiv 2303.15256).

    G_ij is 1 / (size of the component - 1) for two rows of a component and 0 on the diagonal. With two views of each sample,
    Z^T G Z / A is the symmetric part of the cross-correlation of Barlow Twins.

    Args:
        z: embeddings, (B, D), several views of a sample as rows of their own.
        component: what each row belongs to, (B,); each stands twice at least.
        off_diagonal: weight of the squares off the diagonal.

    Returns:
        Scalar, over the rows of all processes.
    """
    z, component = F.batch_norm(gather(z.float()), None, None, training=True), gather(component)
    akin = (component[:, None] == component).float().fill_diagonal_(0.0)
    c = z.T @ (akin / akin.sum(1, keepdim=True)) @ z / len(z)
    on = (c.diagonal() - 1.0).square().sum()
    return on + off_diagonal * (c.square().sum() - c.diagonal().square().sum())


def spectral_map(features: np.ndarray, component: np.ndarray, dim: int, ridge: float = 1e-4, eps: float = 1e-6) -> np.ndarray:
    """The linear map of fixed features that minimises `vic2_loss` over a whole data set, without any descent.

    Cabannes et al., "The SSL Interplay", ICML 2023, arXiv 2302.02774, with the average over the augmentations of a sample
    replaced by the average over its component. Written with W = S^(-1/2) T the loss is |W W^T - B|^2 and a constant, so the
    leading eigenvectors of B, scaled by the roots of their eigenvalues, are best.

    Args:
        features: of m views of n samples, (n, m, P).
        component: of each sample, (n,).
        dim: width D of the embedding.
        ridge: penalty on the map.
        eps: added to the covariance, as a share of its trace.

    Returns:
        T, (P, D); ``features @ T`` are the embeddings.
    """
    n, m, width = features.shape
    flat = features.reshape(n * m, width).astype(np.float64)
    covariance = flat.T @ flat / len(flat)
    covariance += eps * np.trace(covariance) * np.eye(width)
    _, which, size = np.unique(component, return_inverse=True, return_counts=True)
    total = np.zeros((len(size), width))
    np.add.at(total, which, features.mean(1, dtype=np.float64))
    weighted = total / np.sqrt(size)[:, None]  # root of the size times the mean
    akin = weighted.T @ weighted / n
    values, vectors = np.linalg.eigh(covariance)
    root = vectors / np.sqrt(values) @ vectors.T
    b, v = np.linalg.eigh(root @ (akin - ridge * np.eye(width)) @ root)
    return root @ v[:, ::-1][:, :dim] * np.sqrt(b[::-1][:dim].clip(0.0))
