"""What all data modules share: splits, loaders for labelled, unlabelled and mixed batches, views, and the data's spec."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, Unpack

import lightning as L
import numpy as np
from torch.utils.data import DataLoader

from datamodules.loader import Decode, loader
from datamodules.processes import limited, place
from datamodules.pseudo import mixed_sampler, read_pseudo_labels
from datamodules.semi import semi_loader
from ssl_suite.batch import Modality, Spec
from ssl_suite.data.protocol import Protocol, divide, label
from ssl_suite.data.sampler import BucketSampler, EpochSampler, SequentialSampler, ShuffledSampler
from ssl_suite.data.sources import Indexed, Source
from ssl_suite.data.statistics import describe
from ssl_suite.views import Op, Views


class SourceDataModule(L.LightningDataModule):
    """A data module over raw sources; subclasses say where the samples come from.

    Args:
        batch_size: labelled or unlabelled samples per batch and process.
        num_workers: loader processes; 0 reads in the main process.
        seed: seed of splits, order and views.
        views: operations of each kind of view (``weak``, ``strong``, ``crop``); see `ssl_suite.views.Views`.
        mu: unlabelled samples per labelled one in a semi-supervised batch.
        val_fraction: share of the training part held out for validation where the data bring no validation part.
        steps_per_epoch: batches per epoch and process; None goes through the data once.
        frames: time steps per batch; set, it replaces ``batch_size`` by batches of similar length.
        pseudo_labels: file of `ssl_suite.data.pseudo.PseudoLabels`; the samples it keeps count as labelled.
        label_share: share of a labelled batch with given labels where the others are pseudo-labels; without ``frames``.
        mean: what views take off each channel, pictures in [0, 1]; None: measured on the training part, as is ``std``.
        std: what they divide by then.
        protocol: which samples are held out, labelled and mislabelled; see `ssl_suite.data.protocol.Protocol`.

    Attributes:
        form: ``labeled``, ``unlabeled`` or ``semi``: what `train_dataloader` gives.
        rows: places of the samples of each part in the data where they are cut from one whole, sample by sample.
    """

    modality: ClassVar[Modality]
    actions: ClassVar[int] = 0  # numbers in an action
    masks: ClassVar[bool] = False  # a class for every pixel
    decode: Decode = "workers"  # who decodes pictures

    def __init__(self, *, batch_size: int = 128, num_workers: int = 0, seed: int = 0,
                 views: Mapping[str, Sequence[Op]] | None = None, mu: int = 7, val_fraction: float = 0.1,
                 steps_per_epoch: int | None = None, frames: int | None = None, pseudo_labels: str | None = None,
                 label_share: float = 0.25, mean: Sequence[float] | None = None, std: Sequence[float] | None = None,
                 **protocol: Unpack[Protocol]) -> None:
        super().__init__()
        for name, value, least in (("batch_size", batch_size, 1), ("num_workers", num_workers, 0), ("mu", mu, 1)):
            if value < least:
                raise ValueError(f"data.{name} must be at least {least}, got {value}")
        self.batch_size, self.num_workers, self.seed, self.mu, self.frames = batch_size, num_workers, seed, mu, frames
        if not 0.0 <= label_share <= 1.0:
            raise ValueError(f"data.label_share must lie in [0, 1], got {label_share}")
        self.val_fraction, self.steps_per_epoch, self.protocol = val_fraction, steps_per_epoch, protocol
        self.pseudo_labels, self.label_share, self.pseudo = pseudo_labels, label_share, np.array([], np.int64)
        self.views, self.mean, self.std = Views(views, seed), mean, std
        self.form: Literal["labeled", "unlabeled", "semi"] = "labeled"
        self.parts: dict[str, tuple[Source, np.ndarray]] = {}
        self.position, self.rows = 0, dict[str, np.ndarray]()
        self._samplers: list[ShuffledSampler] = []

    def sources(self) -> dict[str, Source]:
        """The raw parts: ``train`` and ``test``, and ``val`` where the data bring one."""
        raise NotImplementedError

    def vocabulary(self) -> tuple[str, ...]:
        """Symbols of the transcripts; empty for data without text."""
        return ()

    def class_names(self) -> tuple[str, ...]:
        """Names of the classes; numbered when the data give none."""
        targets = self.parts["train"][0].targets
        return () if targets is None else tuple(str(c) for c in range(int(targets.max()) + 1))

    def rate(self) -> int:
        """Samples per second of a waveform."""
        return 0

    def setup(self, stage: str | None = None) -> None:
        """Read the sources once, split them and describe them."""
        if self.parts:
            return
        sources = self.sources()
        train = sources.pop("train")
        kept, held = divide(train, 0.0 if "val" in sources else self.val_fraction, self.seed, self.protocol)
        self.parts = {"train": (train, kept), "val": (train, held), **{k: (s, np.arange(len(s))) for k, s in sources.items()}}
        shape, mean, std = describe(train, kept, self.modality, self.mean, self.std)
        self.spec = Spec(self.modality, shape, self.class_names(), self.vocabulary(), self.rate(), mean, std,
                         len(train), self.actions, self.masks)
        self.views.standardise(self.spec)
        self.labeled, self.targets = label(train, kept, self.spec.num_classes, self.seed, self.protocol)
        if self.pseudo_labels is not None:
            self.pseudo, self.targets = read_pseudo_labels(self.pseudo_labels, kept, self.targets, self.spec.num_classes)
            self.labeled = np.union1d(self.labeled, self.pseudo)

    def split(self) -> dict[str, np.ndarray]:
        """Positions in the training source of each part, its classes, the labels used, and `rows`; ``data.split_file`` reads it."""
        train, kept = self.parts["train"]
        held = {"val": self.parts["val"][1]} if self.parts["val"][0] is train else {}
        labeled, targets = label(train, kept, self.spec.num_classes, self.seed, self.protocol)
        labels = {} if train.targets is None or targets is None else {"classes": train.targets, "targets": targets}
        return {"train": kept, "labeled": labeled, **held, **labels, **{f"{part}_rows": r for part, r in self.rows.items()}}

    def seek(self, position: int) -> None:
        """Let training start at a batch, counted from the start of the run on each process."""
        self.position = position
        for sampler in self._samplers:
            sampler.position = position

    def train_dataloader(self) -> Any:
        self._samplers = []
        steps = limited(self.trainer, self.steps_per_epoch)
        if self.form == "labeled":
            return self._shuffled(self.labeled, self.batch_size, steps, labeled=True)
        pool = self.parts["train"][1]
        if self.form == "unlabeled":
            return self._shuffled(pool, self.batch_size, steps, labeled=False)
        per_process = self.batch_size * self.mu * place(self.trainer)[1]
        steps = steps or max(1, len(pool) // per_process)
        return semi_loader(self._shuffled(self.labeled, self.batch_size, steps, labeled=True),
                           self._shuffled(pool, self.batch_size * self.mu, steps, labeled=False))

    def val_dataloader(self) -> DataLoader[Any]:
        return self.clean_loader("val")

    def test_dataloader(self) -> DataLoader[Any]:
        return self.clean_loader("test")

    def clean_loader(self, part: str, indices: np.ndarray | None = None, shard: bool = True) -> DataLoader[Any]:
        """Samples of a part in order, each once: those of this process, or all when ``shard`` is False."""
        source, everything = self.parts[part]
        indices = everything if indices is None else indices
        batch_size = self.batch_size if self.frames is None else max(1, self.frames // self.spec.shape[-1])
        rank, world = place(self.trainer) if shard else (0, 1)
        return self._loader(Indexed(source), SequentialSampler(indices, batch_size, rank, world))

    def _shuffled(self, indices: np.ndarray, batch_size: int, steps: int | None, labeled: bool) -> DataLoader[Any]:
        source = self.parts["train"][0]
        rank, world = place(self.trainer)
        blocks = getattr(source, "blocks", None)
        sampler: ShuffledSampler
        if self.frames is not None:
            sampler = BucketSampler(indices, source.lengths, self.frames, self.seed, rank=rank, world=world, blocks=blocks)
        elif labeled and len(self.pseudo):
            sampler = mixed_sampler(np.setdiff1d(indices, self.pseudo), self.pseudo, batch_size, self.label_share, steps, self.seed,
                                    rank, world)
        else:
            sampler = EpochSampler(indices, batch_size, self.seed, steps, rank, world, blocks)
        sampler.position = self.position
        self._samplers.append(sampler)
        return self._loader(Indexed(source, self.targets if labeled else None, labeled), sampler)

    def _loader(self, dataset: Indexed, sampler: Any) -> DataLoader[Any]:
        dataset.encoded = self.decode == "device"
        return loader(dataset, sampler, self.num_workers, self.trainer)
