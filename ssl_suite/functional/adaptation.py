"""Arithmetic of test-time adaptation: losses of logits alone, and means over the samples worth learning from."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def entropy(logits: Tensor) -> Tensor:
    """Entropy of the softmax of every row, in nats: TENT, arXiv 2006.10726, section 3.1.

    Finite, with a finite gradient, however sure a row is.

    Args:
        logits: (B, K).

    Returns:
        Entropies, (B,), between 0 and ln K; the gradient flows through the probabilities and their logarithms.
    """
    return -(logits.softmax(dim=1) * logits.log_softmax(dim=1)).sum(dim=1)


def hard_pseudo_label(logits: Tensor) -> Tensor:
    """Cross-entropy with the most probable class: -ln p[argmax p], arXiv 2104.12928, section 2.

    Args:
        logits: (B, K).

    Returns:
        Losses, (B,); no gradient flows through the choice of class.
    """
    return -logits.log_softmax(dim=1).max(dim=1).values


def soft_cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy -sum target ln p with soft targets.

    Args:
        logits: (B, K).
        target: distributions, (B, K).

    Returns:
        Losses, (B,); the gradient flows through whatever of the two asks for it.
    """
    return -(target * logits.log_softmax(dim=1)).sum(dim=1)


def soft_pseudo_label(logits: Tensor) -> Tensor:
    """Cross-entropy with the own probabilities held fixed, arXiv 2104.12928, section 2.

    Its value is the entropy; its gradient is zero, since a softmax that is its own target stands at the minimum. It
    moves weights only where the target is of another forward pass than the logits.

    Args:
        logits: (B, K).

    Returns:
        Losses, (B,).
    """
    return soft_cross_entropy(logits, logits.detach().softmax(dim=1))


def generalized_cross_entropy(logits: Tensor, q: float) -> Tensor:
    """Robust pseudo-labelling (RPL): (1 - p[argmax p]^q) / q, arXiv 2104.12928, section 2.

    Its gradient is that of the cross-entropy times p^q, so that unsure samples pull less.

    Args:
        logits: (B, K).
        q: in (0, 1]; towards 0 it becomes the cross-entropy, at 1 the absolute error.

    Returns:
        Losses, (B,), between 0 and 1 / q; no gradient flows through the choice of class.
    """
    return (1.0 - (-q * hard_pseudo_label(logits)).exp()) / q


def mean_of_kept(values: Tensor, keep: Tensor) -> Tensor:
    """Mean over the rows that are kept, without waiting for the device to count them.

    Args:
        values: (B,).
        keep: True for rows that count, (B,) bool.

    Returns:
        Scalar; 0 where no row is kept.
    """
    return (values * keep).sum() / keep.sum().clamp(min=1)


def asking_gradient(x: Tensor, model: nn.Module) -> Tensor:
    """Samples that ask for a gradient of their own where torch needs it, for methods that learn above frozen layers.

    torch 2.12 on CPU crashes in GroupNorm's backward on channels-last maps whose own gradient nobody asks for, as below
    the first layer that learns; asking for the gradient of the samples costs one convolution. See `gradients`.

    Args:
        x: samples (B, ...), float.
        model: what they go through.

    Returns:
        The same samples, cut off from what made them.
    """
    return x.detach().requires_grad_(x.device.type == "cpu" and any(isinstance(m, nn.GroupNorm) for m in model.modules()))


def gradients(loss: Tensor, parameters: Sequence[Tensor], x: Tensor) -> Sequence[Tensor]:
    """Gradients of a loss with respect to parameters, taken past samples that `asking_gradient` made.

    `torch.autograd.grad` leaves out the gradient of samples that are not among its inputs, however they ask.
    """
    return torch.autograd.grad(loss, [*parameters, x] if x.requires_grad else parameters)[: len(parameters)]


def effective_classes(probs: Tensor) -> Tensor:
    """How many classes predictions spread over: the exponential of the entropy of their mean.

    Args:
        probs: (B, K).

    Returns:
        Scalar between 1 and K.
    """
    return torch.special.entr(probs.mean(0)).sum().exp()


def dependence(probs: Tensor, block: int, shortest: int = 3) -> float:
    """How much the class predicted depends on when a sample came: the signature of a stream whose neighbours are alike.

    The mutual information, in nats, between the predicted class and the block of consecutive samples it falls in, less that
    of the same samples dealt out to as many blocks in turn, which takes away the bias of small blocks. A new corruption may
    change which classes are predicted without any order among samples, so abrupt changes are allowed for: the samples are cut
    where this leaves least, into stretches of at least so many blocks, or two at either end. Our own measure; no paper has it.

    Args:
        probs: predictions in the order of the stream, (B, K), of a model that does not adapt.
        block: consecutive samples in a block; what is left over at the front is left out.
        shortest: blocks between two changes, at least 2.

    Returns:
        About 0 for a shuffled stream, up to the logarithm of the classes that come one after another; 0 with fewer
        than two blocks.
    """
    count = len(probs) // block
    if count < 2:
        return 0.0
    kept = probs[len(probs) - count * block :]
    dealt = kept.view(block, count, -1).mean(0)
    excess = (_information(kept.view(count, block, -1).mean(1)) - _information(dealt)).tolist()
    least = list(excess[0])  # of the first so many blocks, as yet without a cut
    for stop in range(4, count + 1):
        last = shortest if stop < count else 2
        cut = [least[start] + excess[start][stop] for start in range(2, stop - last + 1)]
        least[stop] = min([least[stop], *cut])
    return least[count] / count


def _information(blocks: Tensor) -> Tensor:
    """Mutual information of class and block within blocks i to j of (N, K), times their number; (N + 1, N + 1)."""
    place = torch.arange(len(blocks) + 1, device=blocks.device)
    count = (place - place[:, None]).clamp_min(0)
    total, entropies = (F.pad(t.cumsum(0), (0, 0, 1, 0)) for t in (blocks, torch.special.entr(blocks).sum(-1)[:, None]))
    mean = (total - total[:, None]).clamp_min(0.0) / count.clamp_min(1)[..., None]  # rounding may leave less than nothing
    return count * torch.special.entr(mean).sum(-1) - (entropies - entropies[:, None, :])[..., 0] * (count > 0)
