"""DeYO: entropy minimisation on samples whose prediction needs their shape, found by shuffling patches.

Idea: a sure prediction may rest on texture or background alone, and then it is no good teacher. Cut the picture in
patches and shuffle them: if the predicted class keeps its probability, shape played no part. Learn from samples that are
both sure and hurt by shuffling, and more from those that are more so.

Paper: Lee et al., "Entropy is not Enough for Test-Time Adaptation: From the Perspective of Disentangled Factors", ICLR
2024, arXiv 2403.07366. Entropy below 0.5 ln K, drop of the probability (PLPD) above 0.2 over 4 x 4 patches, weights
exp(0.4 ln K - H) + exp(PLPD).

Deviations: shuffled pictures of the whole batch are shown, those that are dropped later too, so that nothing waits for
the device; batch norm sees all of them. As in `sar`, the top quarter of the normalisation layers does not learn, where the
official code leaves out layers by name. Dropout stays off; batches below ``min_batch`` are not learned from.

Batch: ``x`` (B, C, H, W) standardised; ``index`` (B,) seeds the shuffling.

Known limits: pictures only. Two forward passes and one backward per batch. Batch statistics fail as in `tent`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_suite.adapter import Adapter
from ssl_suite.batch import Tags
from ssl_suite.functional.adaptation import asking_gradient, entropy, mean_of_kept
from ssl_suite.functional.random import Draw, sample_keys
from ssl_suite.nn.norm import Statistics, select_lower_norms


def shuffle_patches(x: Tensor, n: int, draw: Draw) -> Tensor:
    """Pictures (B, C, H, W) cut into n x n patches in an order drawn for each, resized where n does not divide them."""
    b, c, h, w = x.shape
    if h < n or w < n:
        raise ValueError(f"adapter.patches={n}: pictures of {h}x{w} pixels have no {n}x{n} patches; choose a lower number")
    size = h // n * n, w // n * n
    whole = x if size == (h, w) else F.interpolate(x, size, mode="bilinear", antialias=True)
    tiles = whole.unflatten(3, (n, -1)).unflatten(2, (n, -1)).permute(0, 2, 4, 1, 3, 5).flatten(1, 2)  # (B, n*n, C, h, w)
    tiles = tiles[torch.arange(b, device=x.device)[:, None], draw.permutation(n * n)].unflatten(1, (n, n))
    whole = tiles.permute(0, 3, 1, 4, 2, 5).reshape(b, c, *size)
    return whole if size == (h, w) else F.interpolate(whole, (h, w), mode="bilinear", antialias=True)


class DeYO(Adapter):
    """Entropy weighted by confidence and by the harm that shuffled patches do; predicts first.

    Args:
        model: standardised pictures to logits.
        entropy_factor: entropy below which a sample counts, as a share of ln K.
        e0_factor: entropy at which the confidence weight is 1, as a share of ln K.
        plpd: drop of the predicted class's probability above which a sample counts.
        patches: patches along each side.
        skip_top: share of the normalisation layers, from the top, that does not learn.
        seed: seed of the shuffling, together with each sample's index.
        optimizer: makes an optimizer from parameters; Adam with rate 1e-3 by default.
        stats: batch-norm statistics.
        min_batch: rows from which batch statistics are trusted.
        autocast: dtype of forward passes.

    Raises:
        ValueError: a number out of range, or a model in which nothing is selected.
    """

    tags = Tags("Lee et al., ICLR 2024, arXiv 2403.07366", "adaptation", modalities=("images",), batch="unlabeled",
                views=("clean",), target="class")

    def __init__(self, model: nn.Module, *, entropy_factor: float = 0.5, e0_factor: float = 0.4, plpd: float = 0.2,
                 patches: int = 4, skip_top: float = 0.25, seed: int = 0,
                 optimizer: Callable[..., torch.optim.Optimizer] | None = None, stats: Statistics = "batch",
                 min_batch: int = 16, autocast: Literal["bfloat16"] | None = None) -> None:
        if not (entropy_factor > 0.0 and e0_factor > 0.0 and -1.0 <= plpd < 1.0 and patches >= 1):
            raise ValueError(f"adapter.entropy_factor={entropy_factor} and adapter.e0_factor={e0_factor} must be positive, "
                             f"adapter.plpd={plpd} in [-1, 1), adapter.patches={patches} at least 1; the paper's are 0.5, "
                             "0.4, 0.2 and 4")
        super().__init__(model, partial(select_lower_norms, skip_top=skip_top),
                         optimizer or partial(torch.optim.Adam, lr=1e-3), stats=stats, min_batch=min_batch,
                         autocast=autocast)
        self.entropy_factor, self.e0_factor, self.plpd = entropy_factor, e0_factor, plpd
        self.patches, self.seed = patches, seed

    def update(self, x: Tensor, length: Tensor | None, index: Tensor) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            draw = Draw(sample_keys(self.seed, torch.zeros_like(index), index))
            shuffled = self(shuffle_patches(x, self.patches, draw)).softmax(1)
        logits = self(asking_gradient(x, self.model))
        h, scale = entropy(logits), math.log(logits.shape[1])
        probs, chosen = logits.detach().softmax(1).max(1)
        drop = probs - shuffled.gather(1, chosen[:, None])[:, 0]
        keep = (h.detach() < self.entropy_factor * scale) & (drop > self.plpd)
        loss = mean_of_kept(h * ((self.e0_factor * scale - h.detach()).exp() + drop.exp()), keep)
        self.used = keep.sum()
        if self.used:  # momentum would move weights even without a gradient, so the host must know
            self.learn(loss)
        return loss, logits
