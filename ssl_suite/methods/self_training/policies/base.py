"""What a policy is, and the two that remember nothing."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn

from ssl_suite.functional.pseudo_labels import sharpen


class Policy(nn.Module):
    """Turns guesses into pseudo-labels with a weight each.

    Attributes:
        paper: short citation, for the catalogue.
    """

    paper: ClassVar[str]

    def forward(self, probs: Tensor, index: Tensor | None = None, labeled_probs: Tensor | None = None,
                labels: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Pseudo-labels and their weights; called once per step, since a call may move what is remembered.

        Args:
            probs: probabilities of the weak view, (M, K), detached.
            index: positions of the samples in the data set, (M,).
            labeled_probs: probabilities of the labelled rows of the same step, (B, K), detached.
            labels: classes of the labelled rows, (B,).

        Returns:
            Pseudo-labels, (M,) int64 or distributions over classes (M, K), and weights (M,), 0 where one is not
            believed.
        """
        raise NotImplementedError

    def penalty(self, logits: Tensor, weight: Tensor) -> Tensor:
        """What the policy adds to the loss; nothing, unless it says otherwise.

        Args:
            logits: predictions on the strong view, (M, K), with gradient.
            weight: what `forward` gave in this step, (M,).

        Returns:
            Scalar.
        """
        return logits.new_zeros(())


def check_range(name: str, value: float, low: float, high: float) -> None:
    """Refuse an argument outside of its range.

    Raises:
        ValueError: the value lies outside; the message names the key.
    """
    if not low <= value <= high:
        raise ValueError(f"policy.{name} must lie in [{low:g}, {high:g}], got {value}")


class FixedThreshold(Policy):
    """The most probable class, believed where its probability reaches a threshold (FixMatch, equation 4).

    Args:
        threshold: least probability, in [0, 1]; 0 believes everything.

    Raises:
        ValueError: the threshold lies outside [0, 1].
    """

    paper = "Sohn et al., NeurIPS 2020, arXiv 2001.07685"

    def __init__(self, threshold: float = 0.95) -> None:
        super().__init__()
        check_range("threshold", threshold, 0.0, 1.0)
        self.threshold = threshold

    def forward(self, probs: Tensor, index: Tensor | None = None, labeled_probs: Tensor | None = None,
                labels: Tensor | None = None) -> tuple[Tensor, Tensor]:
        confidence, target = probs.max(dim=1)
        return target, (confidence >= self.threshold).to(probs.dtype)


class UDA(FixedThreshold):
    """UDA: the whole distribution, sharpened, is the label; believed where its largest probability reaches a threshold.

    The cross-entropy with it and the paper's KL divergence differ by a constant and have the same gradient. The
    threshold looks at the distribution before it is sharpened. The paper's annealing of the labelled loss (TSA) is left
    out.

    Args:
        threshold: least probability, in [0, 1].
        temperature: divides the logits of the pseudo-label; above 0, below 1 sharpens.

    Raises:
        ValueError: the threshold lies outside [0, 1], or the temperature is not positive.
    """

    paper = "Xie et al., NeurIPS 2020, arXiv 1904.12848"

    def __init__(self, threshold: float = 0.8, temperature: float = 0.4) -> None:
        super().__init__(threshold)
        if temperature <= 0.0:
            raise ValueError(f"policy.temperature must be above 0, got {temperature}")
        self.temperature = temperature

    def forward(self, probs: Tensor, index: Tensor | None = None, labeled_probs: Tensor | None = None,
                labels: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return sharpen(probs, self.temperature), super().forward(probs)[1]
