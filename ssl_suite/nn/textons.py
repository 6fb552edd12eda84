"""A number read off a picture's texture: bag of textons, and nearest neighbours or ridge regression on top."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import torch
from sklearn.cluster import MiniBatchKMeans
from sklearn.linear_model import Ridge
from sklearn.neighbors import KNeighborsRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler
from torch import Tensor, nn


def sample_patches(picture: Tensor, count: int, size: int, seed: tuple[int, ...]) -> Tensor:
    """Square patches at random places.

    Args:
        picture: (C, H, W), float.
        count: number of patches; places may repeat.
        size: side of a patch in pixels, at most H and W.
        seed: whole numbers of at least 0 that settle the places.

    Returns:
        Patches, (count, C * size * size).
    """
    windows = picture.unfold(1, size, 1).unfold(2, size, 1)  # (C, rows, columns, size, size)
    rng = np.random.default_rng(seed)
    rows, columns = (torch.from_numpy(rng.integers(windows.shape[axis], size=count)) for axis in (1, 2))
    return windows[:, rows, columns].transpose(0, 1).flatten(1)


def texton_descriptor(patches: Tensor, textons: Tensor) -> Tensor:
    """Share of the patches nearest to each texton, and the entropy of these shares in nats.

    Args:
        patches: (N, P).
        textons: (K, P).

    Returns:
        Descriptor, (K + 1,): shares that sum to one, then their entropy, between 0 and ln K.
    """
    nearest = torch.cdist(patches, textons).argmin(1)
    share = torch.bincount(nearest, minlength=len(textons)).to(patches) / len(patches)
    return torch.cat([share, -torch.xlogy(share, share).sum()[None]])


class TextonRegressor(nn.Module):
    """Bag of textons, then a regressor: the complementary cue of arXiv 1603.08047, from one picture.

    Textons are cluster centres of patches, found once, without labels (`calibrate`); the paper takes them from a Kohonen map.
    They are the only state: `fit` starts anew from all it is given.

    Args:
        regressor: ``knn``, the mean of the nearest neighbours by the square roots of descriptors (Hellinger's distance), or
            ``ridge``, on standardised ones.
        patches: patches drawn from a picture.
        textons: K, number of clusters.
        size: side of a patch in pixels.
        channels: C of the pictures.
        neighbours: of ``knn``; fewer where there are not so many.
        penalty: of ``ridge``.
        seed: seed of the places of patches and of the clusters.

    Raises:
        ValueError: a number out of range.
    """

    textons: Tensor

    def __init__(self, *, regressor: Literal["knn", "ridge"] = "knn", patches: int = 300, textons: int = 20, size: int = 5,
                 channels: int = 3, neighbours: int = 5, penalty: float = 1.0, seed: int = 0) -> None:
        super().__init__()
        if regressor not in ("knn", "ridge"):
            raise ValueError(f"learner.regressor={regressor!r} is not one of 'knn', 'ridge'")
        for name, value in {"patches": patches, "textons": textons - 1, "size": size, "channels": channels,
                            "neighbours": neighbours, "penalty": penalty}.items():
            if value <= 0:
                raise ValueError(f"learner.{name} is too small: patches, size, channels and neighbours start at 1, textons at 2, "
                                 "and the penalty is above 0")
        self.regressor, self.patches, self.size, self.channels = regressor, patches, size, channels
        self.neighbours, self.penalty, self.seed = neighbours, penalty, seed
        self.width = textons + 1
        self.register_buffer("textons", torch.full((textons, channels * size * size), torch.nan))
        self.fitted: Any = None

    def calibrate(self, pictures: Tensor) -> None:
        """Find textons in pictures (N, C, H, W), float; labels are not needed, and what was fitted before is void."""
        patches = torch.cat([self.draw(picture, n) for n, picture in enumerate(pictures)]).numpy()
        if len(patches) < len(self.textons):
            raise ValueError(f"{len(patches)} patches cannot make {len(self.textons)} textons; give more pictures")
        clusters = MiniBatchKMeans(len(self.textons), random_state=self.seed, n_init=3).fit(patches)
        self.textons.copy_(torch.from_numpy(clusters.cluster_centers_))
        self.fitted = None

    def draw(self, picture: Tensor, index: int) -> Tensor:
        """The patches of a picture, settled by the seed and its index."""
        if picture.ndim != 3 or len(picture) != self.channels or min(picture.shape[1:]) < self.size:
            raise ValueError(f"picture of shape {tuple(picture.shape)} is not (C, H, W) with learner.channels={self.channels} and "
                             f"sides of at least learner.size={self.size}")
        return sample_patches(picture, self.patches, self.size, (self.seed, index))

    def describe(self, picture: Tensor, index: int) -> Tensor:
        """Descriptor (D,) of a picture (C, H, W), NaN where the picture is not finite; RuntimeError before `calibrate`."""
        if not self.textons.isfinite().all():
            raise RuntimeError("there are no textons yet; call calibrate(pictures) with a few dozen unlabelled pictures")
        patches = self.draw(picture, index)
        return texton_descriptor(patches, self.textons) if patches.isfinite().all() else patches.new_full((self.width,), torch.nan)

    def fit(self, h: Tensor, value: Tensor) -> None:
        """Regress values (N,) on descriptors (N, D); nothing is known where N is 0."""
        if self.regressor == "ridge":
            model = make_pipeline(StandardScaler(), Ridge(self.penalty))
        else:
            model = make_pipeline(FunctionTransformer(np.sqrt), KNeighborsRegressor(min(self.neighbours, len(h))))
        self.fitted = model.fit(h.numpy(), value.numpy()) if len(h) else None

    def forward(self, h: Tensor) -> Tensor:
        """Estimates (N,) for descriptors (N, D); NaN before the first `fit` and for descriptors that are not finite."""
        estimates, known = h.new_full((len(h),), torch.nan), h.isfinite().all(1)
        if self.fitted is not None and known.any():
            estimates[known] = torch.from_numpy(self.fitted.predict(h[known].numpy())).to(h)
        return estimates

    def forget(self) -> None:
        """Undo `fit`; the textons stay."""
        self.fitted = None
