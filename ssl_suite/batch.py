"""The words every part of the suite shares: keys of a batch, what data look like, what a method needs and returns."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from torch import Tensor

Modality = Literal["images", "speech", "series"]

Backbone = Any
"""A network of `ssl_suite.backbones` or one that follows its protocol (``num_features``, ``forward``, ``tokens``)."""

Batch = dict[str, Any]
"""One batch. Keys, each present only where the data have it:

``x``         raw samples: uint8 pictures (B, C, H, W), int16 or float waveforms (B, T), float series (B, C, T)
``length``    valid time steps of each row of ``x``, (B,) int64; absent where nothing is padded
``index``     position of the sample in its data set, (B,) int64
``epoch``     epoch in which the sample is drawn, (B,) int64
``y``         class of the sample, (B,) int64; or target symbols (B, L) int64 padded with -1; or right action (B, A) float32;
              or, from soft or weighted pseudo-labels, (B, K) float32, rows that sum to the weight of the sample;
              or mask, the class of each pixel, (B, H, W) uint8 with 255 where none counts
``pseudo``    mask that an earlier model guessed, like ``y``; 255 all over where it guessed none
``y_length``  number of target symbols, (B,) int64
``action``    what was done after ``x`` was seen, (B, A) float32
``next``      what was seen after that, of the shape and type of ``x``

A semi-supervised batch holds two of them: ``{"labeled": Batch, "unlabeled": Batch}``.
"""


@dataclass(frozen=True)
class Spec:
    """What a data set's samples look like; a backbone and a head can be built from it alone.

    Attributes:
        modality: ``images``, ``speech`` or ``series``.
        shape: shape of one sample without padding: (C, H, W), (T,) or (C, T), T being the longest sample.
        classes: names of the classes, in the order of their numbers; empty without class labels.
        vocabulary: symbols of the target text, without the CTC blank; empty without transcripts.
        rate: samples per second of a waveform, 0 elsewhere.
        mean: mean of each channel of a sample brought to float (uint8 to [0, 1], int16 to [-1, 1]).
        std: standard deviation of each channel, likewise.
        num_samples: size of the training set with what is held out of it: every ``index`` of a training batch lies
            below. 0 where that is not known.
        actions: numbers A in an action; 0 where nothing acts.
        masks: True where the classes are those of pixels.
    """

    modality: Modality
    shape: tuple[int, ...]
    classes: tuple[str, ...] = ()
    vocabulary: tuple[str, ...] = ()
    rate: int = 0
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    num_samples: int = 0
    actions: int = 0
    masks: bool = False

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.classes)

    def to_dict(self) -> dict[str, Any]:
        """Plain lists, strings and numbers, fit for JSON."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Spec:
        """The inverse of `to_dict`."""
        given: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        return cls(**given)


@dataclass(frozen=True)
class Tags:
    """What a method needs, as data: read by the builder, the contract tests and the catalogue.

    Attributes:
        paper: short citation with an arXiv number or venue.
        task: the part of a model's life the method serves; also its folder under ``methods/``.
        modalities: those the method's idea allows.
        batch: ``labeled`` (x, y), ``unlabeled`` (x only) or ``semi`` (both).
        backbone: ``features`` (any backbone), ``tokens`` (one with ``patches``, ``embed``, ``encode``),
            ``maps`` (one with ``maps``, whose places make up the picture) or ``waveform`` (wav2vec 2.0 kind).
        views: kinds of view the method asks for; the data configuration says what each means.
        across_batch: True when the loss looks at several samples at once, and so across processes.
        target: what the method predicts: ``class``, ``text``, ``action``, ``mask`` or None.
        joint_embedding: True when views are embedded in one space (pictures of views and embedding are drawn).
        script: what runs the method where neither ``train.py`` nor ``adapt.py`` can; None elsewhere.
    """

    paper: str
    task: Literal["pretraining", "self_training", "distillation", "adaptation", "supervised"]
    modalities: tuple[Modality, ...] = ("images", "speech", "series")
    batch: Literal["labeled", "unlabeled", "semi"] = "unlabeled"
    backbone: Literal["features", "tokens", "maps", "waveform"] = "features"
    views: tuple[str, ...] = ("weak",)
    across_batch: bool = False
    target: Literal["class", "text", "action", "mask"] | None = None
    joint_embedding: bool = False
    script: str | None = None


@dataclass
class StepOutput:
    """What `Method.step` returns.

    Attributes:
        loss: scalar with gradient.
        logs: detached scalars, logged under ``train/``.
        features: detached representations (B, D) for callbacks, where the method has them at hand.
    """

    loss: Tensor
    logs: dict[str, Tensor] = field(default_factory=dict)
    features: Tensor | None = None


@dataclass(frozen=True)
class AdaptReport:
    """What `Adapter.predict_and_adapt` did with a batch.

    Attributes:
        loss: the last loss.
        n_used: samples learned from.
        verdict: ``ok``; ``skip``, nothing changed; and, by a guard (`ssl_suite.serving`), ``rollback`` to the last good
            state, ``reset`` to the source model, ``disable``, the source model for good.
        reason: why, where the verdict is not ``ok``.
        ms: time the update and the prediction took, in milliseconds.
    """

    loss: float
    n_used: int
    verdict: Literal["ok", "skip", "rollback", "reset", "disable"] = "ok"
    reason: str = ""
    ms: float = 0.0
