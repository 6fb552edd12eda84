"""Features on a plane, for the eye."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE

from ssl_suite.config import require

Projection = Literal["pca", "tsne", "umap"]


def flattened(features: np.ndarray, by: Projection = "pca", seed: int = 0) -> np.ndarray:
    """Features (N, D) on a plane, (N, 2): points that are near each other there are near each other here.

    PCA is a shadow and keeps distances as far as two axes can. t-SNE (van der Maaten and Hinton, JMLR 2008) and UMAP (McInnes et
    al., arXiv 1802.03426) keep neighbours; sizes of clusters and distances between them mean nothing there. Both start from
    principal axes or a spectral layout and are seeded.

    Args:
        features: one row per sample, at least 5.
        by: ``pca``, ``tsne`` with scikit-learn, ``umap`` with umap-learn.
        seed: of what the two draw.

    Raises:
        ImportError: umap-learn is missing; the message says which install brings it.
        ValueError: fewer than 5 samples, or no such projection.
    """
    if len(features) < 5:
        raise ValueError(f"a map needs at least 5 samples, got {len(features)}")
    if by == "pca":
        return PCA(2).fit_transform(features)
    if by == "tsne":
        perplexity = min(30.0, (len(features) - 1) / 3.0)
        return TSNE(2, perplexity=perplexity, init="pca", random_state=seed).fit_transform(features)
    if by == "umap":
        umap: Any = require("umap", extra="maps")
        neighbours = min(15, len(features) - 1)
        return umap.UMAP(n_components=2, n_neighbors=neighbours, random_state=seed, n_jobs=1).fit_transform(features)
    raise ValueError(f"by={by!r} must be 'pca', 'tsne' or 'umap'")
