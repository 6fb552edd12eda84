"""wav2vec 2.0: hide spans of speech and tell the true quantised frame from other frames of the same utterance.

Idea: frames of a waveform encoder are hidden in spans before a Transformer, which must pick at each hidden place the
quantised version of what was there among frames hidden elsewhere in the utterance. Quantising keeps what is phonetic in
the target and drops detail that would give the answer away.

Paper: Baevski et al., "wav2vec 2.0", NeurIPS 2020, arXiv 2006.11477, equations 2 to 4; weights of the terms, gradient
scale and normalisation as in fairseq's ``wav2vec2.py`` and ``wav2vec_criterion.py``.

Deviations: the loss is the mean over the hidden frames of all processes, fairseq's sum divided by its sample size, and
usage of the codebooks (equation 4) is averaged over all processes. Spans, crops, distractors and Gumbel noise are drawn
per sample. What is gathered from a mask has a fixed size, the most that a mask can hide, with a weight that says which
places count: nothing waits for the device. A hit is a target scored strictly above all distractors.

Batch: ``x`` (B, T) and ``index`` (B,), with ``epoch`` and ``length`` (B,) where present.

Known limits: rows are cut to the row that hides least, so one short row costs all others targets: batch similar
lengths (``data.frames``) or crop. Small batches collapse: watch ``code_perplexity``. Where rows are padded the
front-end must be one with layer norms.
"""

from __future__ import annotations

from typing import Unpack

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_suite.backbones.speech import Wav2Vec2
from ssl_suite.batch import Batch, StepOutput, Tags
from ssl_suite.functional.distributed import gather, mean_over_processes, world_size
from ssl_suite.functional.masking import take
from ssl_suite.functional.random import Draw
from ssl_suite.functional.span_masking import crop, cut_to_smallest, most_masked, span_mask
from ssl_suite.method import Method, Training
from ssl_suite.nn.quantizer import GumbelQuantizer, Quantized, gumbel, perplexity
from ssl_suite.views import Views

MASK_STREAM, NOISE_STREAM, CROP_STREAM = 100, 101, 102


def scale_gradient(x: Tensor, factor: float) -> Tensor:
    """The same values with the gradient multiplied by ``factor``."""
    return x.detach() + factor * (x - x.detach())


def draw_distractors(draw: Draw, size: int, count: Tensor, k: int) -> Tensor:
    """For each of the first ``count`` of M = ``size`` places k others of them, with replacement, (B, M, K)."""
    other = draw.integers(2**62, size, k) % (count - 1).clamp_min(1)
    return other + (other >= torch.arange(size, device=other.device)[:, None])


def contrastive_logits(context: Tensor, targets: Tensor, codes: Tensor, distractors: Tensor,
                       temperature: float) -> Tensor:
    """Cosine of each context with its target and its distractors, over the temperature (equation 3), in float32.

    Args:
        context: predictions, (B, M, F).
        targets: quantised frames, (B, M, F).
        codes: codes of the targets, (B, M, G); a distractor with the target's codes is none and gets -inf.
        distractors: their places, (B, M, K).
        temperature: above 0.

    Returns:
        (B, M, 1 + K), the target first.
    """
    with torch.autocast(context.device.type, enabled=False):
        cosine = F.normalize(context.float(), dim=-1) @ F.normalize(targets.float(), dim=-1).mT / temperature
    same = (codes[:, :, None] == codes[:, None]).all(dim=-1)
    positive = cosine.diagonal(dim1=1, dim2=2).unsqueeze(-1)
    return torch.cat([positive, cosine.masked_fill(same, -torch.inf).gather(2, distractors)], dim=-1)


class Wav2Vec2Pretraining(Method):
    """Contrastive learning of masked speech.

    Args:
        backbone: a wav2vec 2.0 network.
        views: kind ``weak`` is used.
        mask_prob: share of hidden frames if spans never overlapped.
        mask_length: frames of a span.
        crop: longest piece of an utterance that is used, in seconds.
        num_negatives: distractors K.
        temperature: of the similarities; above 0.
        groups: codebooks G.
        entries: entries V of each codebook.
        codebook_dim: width of the concatenated entries.
        projection_dim: width F in which predictions and targets are compared.
        tau: first and last temperature of the Gumbel softmax.
        tau_decay: factor on it per step; (last / first) ** (1 / steps) fits runs shorter than the paper's 400k steps.
        diversity_weight: weight alpha of the diversity loss.
        penalty_weight: weight of the mean square of the front-end's output.
        gradient_scale: factor on the gradient into the front-end.
        dropout: on the frames that are quantised, in [0, 1).
        training: optimizer and schedule; see `Method`.
    """

    tags = Tags("Baevski et al., NeurIPS 2020, arXiv 2006.11477", "pretraining", modalities=("speech",),
                backbone="waveform", views=("weak",), across_batch=True)

    backbone: Wav2Vec2

    def __init__(self, backbone: Wav2Vec2, views: Views, *, mask_prob: float = 0.65, mask_length: int = 10,
                 crop: float = 15.6, num_negatives: int = 100, temperature: float = 0.1, groups: int = 2,
                 entries: int = 320, codebook_dim: int = 256, projection_dim: int = 256,
                 tau: tuple[float, float] = (2.0, 0.5), tau_decay: float = 0.999995, diversity_weight: float = 0.1,
                 penalty_weight: float = 10.0, gradient_scale: float = 0.1, dropout: float = 0.1,
                 **training: Unpack[Training]) -> None:
        super().__init__(backbone, views, **training)
        self.mask_prob, self.mask_length, self.num_negatives = mask_prob, mask_length, num_negatives
        self.crop = round(crop * backbone.spec.rate)
        self.temperature, self.gradient_scale = temperature, gradient_scale
        self.first_tau, self.last_tau, self.tau_decay = *tau, tau_decay
        self.diversity_weight, self.penalty_weight = diversity_weight, penalty_weight
        self.dropout = nn.Dropout(dropout)
        self.quantizer = GumbelQuantizer(backbone.conv_features, groups, entries, codebook_dim)
        self.target_head = nn.Linear(codebook_dim, projection_dim)
        self.context_head = nn.Linear(backbone.num_features, projection_dim)
        self.mask_embedding = nn.Parameter(torch.rand(backbone.num_features))

    @property
    def tau(self) -> float:
        """Temperature of the Gumbel softmax at this step."""
        return max(self.first_tau * self.tau_decay**self.global_step, self.last_tau)

    def step(self, batch: Batch) -> StepOutput:
        (x,) = self.views(batch, "weak")
        x, length = crop(x, batch.get("length"), self.views.draw(batch, CROP_STREAM), self.crop)
        z, valid = self.extract(x, length)
        mask, count = self.draw_mask(batch, valid)
        size = most_masked(z.shape[1], self.mask_prob, self.mask_length)
        places = mask.int().argsort(dim=1, descending=True, stable=True)[:, :size]
        used = (torch.arange(size, device=z.device) < count) & mask.any(dim=1, keepdim=True)

        draw = self.views.draw(batch, NOISE_STREAM)
        quantized = self.quantize(z, places, draw)
        predictions = self.context_head(take(self.context(z, mask, valid), places))
        logits = contrastive_logits(predictions, self.target_head(quantized.vectors), quantized.codes,
                                    draw_distractors(draw, size, count, self.num_negatives), self.temperature)
        total, frames = mean_over_processes(torch.stack([used.sum(), valid.sum()]).float()).clamp_min(1.0)
        contrastive = ((logits.logsumexp(dim=-1) - logits[..., 0]) * used).sum() / total
        penalty = (z.float().square().mean(dim=-1) * valid).sum() / frames
        codes = F.one_hot(quantized.codes, self.quantizer.entries)
        usage, usage_hard = self.usage(torch.stack([quantized.probs, codes.to(quantized.probs.dtype)]), used)
        diversity = 1.0 - perplexity(usage) / usage.numel()
        hits = (logits[..., 0] > logits[..., 1:].amax(dim=-1)) & used
        logs = {"contrastive": contrastive, "accuracy": hits.sum() / total, "masked": mask.sum() / frames,
                "feature_penalty": penalty, "prob_perplexity": perplexity(usage),
                "code_perplexity": perplexity(usage_hard), "tau": torch.tensor(self.tau)}
        return StepOutput(contrastive + self.diversity_weight * diversity + self.penalty_weight * penalty,
                          {name: value.detach() for name, value in logs.items()})

    def extract(self, x: Tensor, length: Tensor | None) -> tuple[Tensor, Tensor]:
        """Front-end features (B, N, C) with their scaled gradient, and which of them exist, (B, N) bool.

        Raises:
            ValueError: the waveforms are too short for two hidden frames.
        """
        z, frames = self.backbone.extract(x, length)
        if z.shape[1] < 3:
            raise ValueError(f"{x.shape[1]} samples give {z.shape[1]} frames; wav2vec 2.0 needs 3, drop such samples")
        valid = torch.ones_like(z[..., 0], dtype=torch.bool)
        if frames is not None:
            valid = torch.arange(z.shape[1], device=z.device) < frames[:, None]
        return scale_gradient(z, self.gradient_scale), valid

    def draw_mask(self, batch: Batch, valid: Tensor) -> tuple[Tensor, Tensor]:
        """Span mask (B, N) with the same number of hidden frames in each row, and that number, a scalar.

        Rows too short to hide anything hide nothing and do not count. The number is the smallest of all processes.
        """
        draw = self.views.draw(batch, MASK_STREAM)
        mask = span_mask(draw, valid, self.mask_prob, self.mask_length)
        hidden = mask.sum(dim=1)
        count = hidden.masked_fill(hidden == 0, mask.shape[1]).min()
        if world_size() > 1:
            dist.all_reduce(count, dist.ReduceOp.MIN)
        return cut_to_smallest(draw, mask, count), count

    def quantize(self, z: Tensor, places: Tensor, draw: Draw) -> Quantized:
        """Targets: the normalised features (B, N, C) at places (B, M), quantised; without noise in evaluation."""
        features = take(self.dropout(self.backbone.net.encoder.feature_projection.layer_norm(z)), places)
        shape = (places.shape[1], self.quantizer.groups, self.quantizer.entries)
        return self.quantizer(features, self.tau, gumbel(draw.uniform(*shape)) if self.training else None)

    def context(self, z: Tensor, mask: Tensor, valid: Tensor) -> Tensor:
        """Transformer output (B, N, D) over features with hidden frames replaced by the mask vector."""
        h = self.backbone.project(z)
        h = torch.where(mask.unsqueeze(-1), self.mask_embedding.to(h.dtype), h)
        return self.backbone.contextualise(h, valid.sum(dim=1))

    def usage(self, choices: Tensor, used: Tensor) -> Tensor:
        """Means over the hidden frames of all processes of several choices (C, B, M, G, V), as (C, G, V)."""
        total = torch.einsum("cbmgv,bm->cgv", choices.float(), used.float())
        sums, number = gather(torch.cat([total.flatten(), used.sum().float().view(1)])[None]).sum(dim=0).tensor_split([-1])
        return sums.view_as(total) / number.clamp_min(1.0)
