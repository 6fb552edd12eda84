"""Self-training in stages: pseudo-labels of a finished run for the next one, and what there is to say of them."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from ssl_suite.config import ConfigError, arguments, check_arguments, check_target
from ssl_suite.data.pseudo import PseudoLabels
from ssl_suite.functional import selection
from ssl_suite.functional.selection import certainty, entropy
from ssl_suite.io.checkpoints import AtomicCheckpointIO, intact
from ssl_suite.run import Run, build_data, building, load_run

FALL = 0.1
"""A fall of the kept labels' entropy from one stage to the next, as a share of ln K, that brings a warning."""
SHRINK = 0.25
"""A loss of a class's share of the kept labels, as a part of that share, that brings a warning: one class starves before the
entropy of many shows it."""
SURE = 0.75
"""Least confidence that a rule must ask for before samples may weigh by their entropy: nothing verifies the guesses here, and among
all of them such weights favour the wrong ones. It is the default of `selection.fixed`."""


@dataclass(frozen=True)
class Labelling:
    """How a stage gets its pseudo-labels; the ``labels`` of a stage in a plan.

    Attributes:
        teacher: stage whose run labels the pool; the stage before by default.
        select: rule of `ssl_suite.functional.selection`, or your own of ``trusted_packages``, by ``_target_`` and arguments; None
            keeps all. A parameter named ``turn`` gets the number of the stage among those with labels, from 1.
        pool: samples to label: ``unlabelled``, ``labelled`` or ``all``.
        soft: keep the probabilities and not the most probable class.
        given: share of the given label in the target of a labelled sample; the teacher has the rest.
        balance: the same number of each class: too many lose their least confident, too few weigh more.
        weight: weight of a sample: ``one``, its ``certainty`` 1 - H / ln K, or its ``entropy`` H / ln K, the last only with a rule
            that keeps nothing below the confidence `SURE`.
        rank: what ``select`` ranks by: ``confidence``, the highest probability; ``agreement`` of the teacher's earlier checkpoints
            with its last; or ``method``, the confidence that the teacher's method has of its own, as `TSimilarity` has.
    """

    teacher: str
    select: dict[str, Any] | None = None
    pool: Literal["unlabelled", "labelled", "all"] = "unlabelled"
    soft: bool = False
    given: float = 0.5
    balance: bool = False
    weight: Literal["one", "certainty", "entropy"] = "one"
    rank: Literal["confidence", "agreement", "method"] = "confidence"

    @classmethod
    def read(cls, node: Mapping[str, Any], where: str, packages: Sequence[str] = (), turn: int = 1) -> Labelling:
        """Checked options of a stage.

        Args:
            node: option -> value.
            where: place in the plan, for messages.
            packages: packages that a rule may come from besides the suite's own.
            turn: number of the stage among those with labels.

        Raises:
            ConfigError: an unknown option, an ill-typed value, a rule that does not exist or takes other arguments, one that cannot
                rank as asked, or weights that favour what nobody has verified.
        """
        check_arguments(cls, node, where)
        options = cls(**node)
        if not 0.0 <= options.given <= 1.0:
            raise ConfigError(f"{where}.given={options.given} must lie in [0, 1]")
        rule, select = (None, {}) if options.select is None else checked_rule(options.select, f"{where}.select", packages, turn)
        options = replace(options, select=select or None)
        if options.rank != "confidence" and (rule is None or "score" not in inspect.signature(rule).parameters):
            raise ConfigError(f"{where}.rank={options.rank} needs a rule that ranks, top or curriculum; "
                              f"{rule.__name__ if rule else 'no rule'} takes no score: set {where}.select")
        if options.weight == "entropy" and least_confidence(rule, select) < SURE:
            raise ConfigError(f"{where}.weight=entropy gives most weight to what the teacher knows least, and nothing verifies it; "
                              f"set {where}.select to fixed or margin, with a threshold of {SURE} or more, or weight: certainty")
        return options

    def keep(self, probs: np.ndarray, score: np.ndarray | None = None) -> np.ndarray:
        """What the rule keeps of probabilities (N, K), (N,) bool."""
        if self.select is None:
            return np.ones(len(probs), bool)
        rule = check_target(self.select["_target_"], "select", (self.select["_target_"].split(".")[0],))
        given = {key: value for key, value in self.select.items() if key != "_target_"}
        if score is not None:
            given["score"] = score
        with building("select"):
            return rule(probs, **given)

    def weights(self, probs: np.ndarray) -> np.ndarray:
        """Weight of each sample, (N,) float32."""
        if self.weight == "one":
            return np.ones(len(probs), np.float32)
        sure = certainty(probs).clip(0.0, 1.0).astype(np.float32)
        return sure if self.weight == "certainty" else 1.0 - sure


def checked_rule(select: Mapping[str, Any], where: str, packages: Sequence[str], turn: int) -> tuple[Callable, dict[str, Any]]:
    """A rule and its options, with the turn where it asks for one.

    Raises:
        ConfigError: there is no such rule, it may not be called, or takes other arguments.
    """
    if "_target_" not in select:
        raise ConfigError(f"{where} names no rule: _target_ is missing")
    rule = check_target(select["_target_"], f"{where}._target_", packages)
    first, *names = inspect.signature(rule).parameters
    given = {**({"turn": turn} if "turn" in names else {}), **select}
    check_arguments(rule, {**given, "_partial_": True}, where)
    if missing := sorted(arguments(rule)[1] - {first, *given}):
        raise ConfigError(f"{where}.{missing[0]} is missing: {rule.__name__} needs it")
    return rule, given


def least_confidence(rule: Callable | None, select: Mapping[str, Any]) -> float:
    """Confidence that all have that a rule keeps, as far as its options tell; 0 where they tell nothing.

    A margin over the second class is a confidence no lower. What a share keeps hangs on the samples; your own rule tells nothing.
    """
    if rule not in (selection.fixed, selection.margin):
        return 0.0
    return select.get("threshold", inspect.signature(rule).parameters["threshold"].default)


@dataclass
class Report:
    """What is said of the pseudo-labels of a stage; written as ``policy_report.json``.

    Attributes:
        teacher: stage that gave them.
        pool: samples labelled.
        kept: samples kept.
        per_class: kept samples of each class, (K,).
        mean_confidence: of the kept.
        diversity: entropy of the kept classes as a share of ln K, in [0, 1].
        accuracy_pool: share of right labels in the pool; None where the true ones are not known.
        accuracy_kept: the same among the kept.
        gap: weighted accuracy of what the rule keeps of the validation part, less that of all of it; None without one.
        warnings: what a user should know.
    """

    teacher: str
    pool: int
    kept: int
    per_class: list[int]
    mean_confidence: float
    diversity: float
    accuracy_pool: float | None = None
    accuracy_kept: float | None = None
    gap: float | None = None
    warnings: list[str] = field(default_factory=list)

    def write(self, path: Path) -> None:
        """Write it as JSON in one piece."""
        write_json(path, vars(self))


def write_json(path: Path, content: Any) -> None:
    """A JSON file that is complete or not there."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(json.dumps(content, indent=2) + "\n")
    temporary.replace(path)


@torch.no_grad()
def probabilities(run: Run, data: Any, part: str, indices: np.ndarray | None = None) -> np.ndarray:
    """Class probabilities of samples of a part by a run's method, (N, K) float32."""
    loader = data.clean_loader(part, indices, shard=False)
    return np.concatenate([run.method.logits(batch).float().softmax(1).numpy() for batch in loader])


def each_checkpoint(run: Run, say: Callable[[], Any]) -> list[Any]:
    """What is said with the weights of each checkpoint that a run kept, oldest first; its last weights are put back.

    Raises:
        ConfigError: the run kept fewer than two checkpoints.
    """
    paths = sorted((p for p in (run.folder / "checkpoints").glob("*.ckpt") if intact(p)), key=lambda p: p.stat().st_mtime_ns)
    if len(paths) < 2:
        raise ConfigError(f"{run.folder} kept {len(paths)} checkpoints, and a look back takes two or more; let "
                          "it keep them with callbacks.checkpoint.save_top_k=-1 callbacks.checkpoint.every_n_epochs=N")
    last = {name: value.clone() for name, value in run.method.state_dict().items()}
    told = []
    for path in paths:
        run.method.load_state_dict(AtomicCheckpointIO().load_checkpoint(path)["state_dict"])
        told.append(say())
    run.method.load_state_dict(last)
    return told


def agreement(run: Run, data: Any, part: str, indices: np.ndarray) -> np.ndarray:
    """Share of a run's earlier checkpoints that give a sample the class of the last, (N,) (ST++, arXiv 2106.05095)."""
    *votes, last = each_checkpoint(run, lambda: probabilities(run, data, part, indices).argmax(1))
    return np.mean([vote == last for vote in votes], axis=0)


def confidence(run: Run, data: Any, part: str, indices: np.ndarray) -> np.ndarray:
    """What a run's method says of its own confidence in samples of a part, (N,) float32."""
    check_confidence(type(run.method))
    method: Any = run.method
    with torch.no_grad():
        return np.concatenate([method.confidence(batch).float().numpy() for batch in data.clean_loader(part, indices, shard=False)])


def check_confidence(method: type) -> None:
    """Refuse a method without a confidence of its own; ConfigError."""
    if not hasattr(method, "confidence"):
        raise ConfigError(f"rank: method needs a teacher whose method has a confidence of its own, as model=t_similarity has; "
                          f"{method.__name__} has none: take rank: confidence, the highest probability, or rank: agreement")


def scores(options: Labelling, run: Run, data: Any, part: str, indices: np.ndarray) -> np.ndarray | None:
    """What the rule ranks samples of a part by, (N,); None where it takes the probabilities."""
    ranks = {"agreement": agreement, "method": confidence}
    return None if options.rank == "confidence" else ranks[options.rank](run, data, part, indices)


def label(folder: Path, options: Labelling, previous: Report | None = None) -> tuple[PseudoLabels, Report]:
    """Let a finished run label the pool.

    Args:
        folder: the teacher's run folder.
        options: what to label and what to keep.
        previous: report of the stage before, to compare the diversity with.

    Raises:
        ConfigError: the pool is empty, or the rule keeps nothing.
    """
    run = load_run(folder)
    data = build_data({**run.config, "data": {**run.config["data"], "pseudo_labels": None}}, None)
    index = pool(data, options.pool)
    probs = probabilities(run, data, "train", index)
    kept = options.keep(probs, scores(options, run, data, "train", index))
    if not kept.any():
        raise ConfigError(f"the rule {(options.select or {}).get('_target_')} keeps none of {len(index)} samples, whose confidence "
                          f"is at most {probs.max():.3f}; lower its threshold or raise its share")
    target, weight = probs.copy(), options.weights(probs)
    if options.balance:
        kept, weight = balanced(probs, kept, weight)
    own = np.isin(index, data.labeled)
    if own.any():
        given = np.eye(target.shape[1], dtype=np.float32)[data.targets[index[own]]]
        target[own] = (1 - options.given) * target[own] + options.given * given
    labels = PseudoLabels(index, target if options.soft else probs.argmax(1), probs.max(1), kept, weight)
    return labels, report(options, labels, probs, run, data, previous)


def pool(data: Any, name: str) -> np.ndarray:
    """Samples of the training part that are to be labelled; ConfigError when there are none."""
    train = data.parts["train"][1]
    found = {"unlabelled": np.setdiff1d(train, data.labeled), "labelled": data.labeled, "all": train}[name]
    if not len(found):
        raise ConfigError(f"there are no {name} samples: all {len(train)} of the training part have labels; keep few of them with "
                          "data.labels_per_class=4 or data.labels=40")
    return found


def balanced(probs: np.ndarray, kept: np.ndarray, weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The same weight for every class among the kept (Noisy Student, arXiv 1911.04252, section 2).

    The mean number of kept samples per class is every class's due. Above it the least confident go; below it the paper
    copies samples, and here they weigh as much as their copies would.

    Args:
        probs: probabilities, (N, K).
        kept: samples kept so far, (N,) bool.
        weight: weight of each, (N,).
    """
    predicted, confidence = probs.argmax(1), probs.max(1)
    classes = np.unique(predicted[kept])
    due = max(1, int(kept.sum()) // len(classes))
    kept, weight = kept.copy(), weight.copy()
    for c in classes:
        members = np.flatnonzero(kept & (predicted == c))
        kept[members[np.argsort(-confidence[members], kind="stable")][due:]] = False
        weight[members] *= max(1.0, due / len(members))
    return kept, weight


def report(options: Labelling, labels: PseudoLabels, probs: np.ndarray, run: Run, data: Any, previous: Report | None) -> Report:
    """What there is to say of pseudo-labels; true labels are read here alone, after all is decided."""
    kept, guessed, classes = labels.kept, probs.argmax(1), probs.shape[1]
    counts = np.bincount(guessed[kept], minlength=classes)
    found = Report(options.teacher, len(kept), int(kept.sum()), counts.tolist(), float(labels.confidence[kept].mean()),
                   float(entropy(counts / counts.sum()) / np.log(classes)))
    truth = data.parts["train"][0].targets
    right = guessed == truth[labels.index]
    found.accuracy_pool, found.accuracy_kept = float(right.mean()), float(right[kept].mean())
    source, held = data.parts["val"]
    if len(held):
        found.gap = gap(options, probabilities(run, data, "val"), source.targets[held], scores(options, run, data, "val", held))
    found.warnings = alarms(found, previous, data.spec.classes)
    return found


def gap(options: Labelling, probs: np.ndarray, y: np.ndarray, score: np.ndarray | None = None) -> float:
    """Weighted accuracy of the kept less accuracy of all: without a gap, nothing can be learned ("Mind the Gap", 2412.02674)."""
    right, weight = (probs.argmax(1) == y).astype(float), options.weights(probs) * options.keep(probs, score)
    return float((right * weight).sum() / weight.sum() - right.mean()) if weight.sum() else 0.0


def alarms(found: Report, previous: Report | None, classes: tuple[str, ...]) -> list[str]:
    """Warnings of missing classes, falling diversity and a rule that picks worse than chance."""
    gone = [name for name, count in zip(classes, found.per_class, strict=True) if not count]
    told = [f"no sample is kept of class {', '.join(gone)}"] if gone else []
    if previous is not None and previous.diversity - found.diversity > FALL:
        told.append(f"the kept labels are less diverse than those of the stage before: entropy {previous.diversity:.2f} -> "
                    f"{found.diversity:.2f} of ln K; a collapse begins like this")
    earlier = found.per_class if previous is None else previous.per_class
    for name, count, before in zip(classes, found.per_class, earlier, strict=True):
        if previous is not None and before and count / found.kept < (1.0 - SHRINK) * before / previous.kept:
            told.append(f"class {name} shrinks: {before} of {previous.kept} kept labels in the stage before, {count} of "
                        f"{found.kept} now")
    if found.gap is not None and found.gap < 0:
        told.append(f"what is kept is {-found.gap:.1%} less accurate than the rest on the validation part: the rule points the "
                    "wrong way")
    return told


def read_report(path: Path) -> Report:
    """The inverse of `Report.write`."""
    return Report(**json.loads(path.read_text()))


def check_start(data: Any, pools: Sequence[str]) -> None:
    """Refuse data that stages cannot work on, before anything is trained.

    Args:
        data: data module of the first stage, set up.
        pools: pools of all stages.

    Raises:
        ConfigError: masks, no classes, nothing to label, or a class without a label.
    """
    if data.spec.masks:
        raise ConfigError("these stages learn one class a sample, but the data have masks: take scripts/self_training_masks.py")
    if not data.spec.num_classes:
        raise ConfigError("self-training in stages needs class labels, but the data have none")
    for name in pools:
        pool(data, name)
    gone = np.setdiff1d(np.arange(data.spec.num_classes), data.targets[data.labeled])
    if len(gone):
        raise ConfigError(f"class {data.spec.classes[gone[0]]} has no labelled sample, so no stage can ever learn it; choose "
                          "data.labels_per_class, or more data.labels")


def ensemble_accuracy(folders: list[Path]) -> float:
    """Test accuracy of the mean of several runs' probabilities (Born-Again Networks, arXiv 1805.04770)."""
    runs = [load_run(folder) for folder in folders]
    data = build_data({**runs[0].config, "data": {**runs[0].config["data"], "pseudo_labels": None}}, None)
    source, indices = data.parts["test"]
    mean = np.mean([probabilities(run, data, "test") for run in runs], axis=0)
    return float((mean.argmax(1) == source.targets[indices]).mean())


