"""A policy that drops the rows of highest entropy, whatever their confidence."""

from __future__ import annotations

from torch import Tensor

from ssl_suite.functional.distributed import gather
from ssl_suite.methods.self_training.policies.base import Policy, check_range


class EntropyPercentile(Policy):
    """The most probable class of all rows but those of the highest entropy; made for pixels.

    A fixed share is believed from the first step on, sure or not. Kept rows weigh 1; the official code of FST raises its loss by
    all / kept, which a larger weight of the unlabelled loss does as well.

    Args:
        keep: share of the rows that is believed, in (0, 1]; 0.8 in the official code of FST.

    Raises:
        ValueError: the share lies outside (0, 1].
    """

    paper = "Wang et al., CVPR 2022, arXiv 2203.03884; Du et al., NeurIPS 2022, arXiv 2209.06993"

    def __init__(self, keep: float = 0.8) -> None:
        super().__init__()
        check_range("keep", keep, 1e-6, 1.0)
        self.keep = keep

    def forward(self, probs: Tensor, index: Tensor | None = None, labeled_probs: Tensor | None = None,
                labels: Tensor | None = None) -> tuple[Tensor, Tensor]:
        entropy = -(probs * probs.clamp(min=1e-12).log()).sum(1)
        everywhere = gather(entropy)
        kept = max(1, round(self.keep * len(everywhere)))
        return probs.argmax(1), (entropy <= everywhere.kthvalue(kept).values).to(probs.dtype)
