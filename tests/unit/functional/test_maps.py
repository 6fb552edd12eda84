"""Features on a plane: neighbours stay neighbours."""

from __future__ import annotations

import builtins
from typing import Any

import numpy as np
import pytest

from ssl_suite.functional.maps import flattened

CENTRES = 20.0 * np.eye(4, 8)
labels = np.arange(80) % 4
X = CENTRES[labels] + np.random.default_rng(0).normal(size=(80, 8))


@pytest.mark.parametrize("by", ["pca", "tsne", "umap"])
def test_clusters_stay_apart(by: Any) -> None:
    if by == "umap":
        pytest.importorskip("umap", reason="umap-learn is not installed")
    flat = flattened(X, by)
    assert flat.shape == (80, 2)
    middles = np.stack([flat[labels == c].mean(0) for c in range(4)])
    nearest = np.square(flat[:, None] - middles).sum(-1).argmin(1)
    assert (nearest == labels).mean() > 0.95
    assert np.allclose(flat, flattened(X, by)), "a seed makes one map"


def test_few_samples_do() -> None:
    assert flattened(X[:6], "tsne").shape == (6, 2)
    with pytest.raises(ValueError, match="at least 5 samples, got 4"):
        flattened(X[:4])
    with pytest.raises(ValueError, match="by='isomap' must be"):
        flattened(X, "isomap")  # type: ignore[arg-type]


def test_a_missing_umap_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    load = builtins.__import__
    monkeypatch.setattr("importlib.import_module", lambda name, *rest: (_ for _ in ()).throw(ImportError(name)) if name == "umap"
                        else load(name, *rest))
    with pytest.raises(ImportError, match=r'pip install "ssl-suite\[maps\]"'):
        flattened(X, "umap")
