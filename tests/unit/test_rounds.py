"""Pseudo-labels of one stage for the next, what is said of them, and plans."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from ssl_suite.config import ConfigError
from ssl_suite.data.pseudo import PseudoLabels
from ssl_suite.io.checkpoints import newest_checkpoint
from ssl_suite.methods.self_training.t_similarity import t_similarity
from ssl_suite.programs import claimed
from ssl_suite.rounds import SURE, Labelling, Report, agreement, alarms, balanced, check_start, gap, label, pool, probabilities
from ssl_suite.run import build_data, load_run
from tests.conftest import ROOT
from tests.runs import masks, run, tiny_data

sys.path.insert(0, str(ROOT / "scripts"))
import self_train

FIXED = "ssl_suite.functional.selection.fixed"
MARGIN = "ssl_suite.functional.selection.margin"
CURRICULUM = "ssl_suite.functional.selection.curriculum"
TOP = {"_target_": "ssl_suite.functional.selection.top", "share": 0.25}


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two steps with four labels a class."""
    return run(tmp_path_factory.mktemp("teacher"), "model=supervised", "data=digits", "data.labels_per_class=4")


def read(**options: Any) -> Labelling:
    return Labelling.read({"teacher": "teacher", **options}, "stages.student.labels")


def test_a_pool_is_labelled_by_the_teacher(teacher: Path) -> None:
    labels, found = label(teacher, read(select=TOP))
    assert found.pool == len(labels.index)
    assert found.kept == labels.kept.sum() == sum(found.per_class) == round(0.25 * found.pool)
    assert labels.confidence[labels.kept].min() >= labels.confidence[~labels.kept].max()
    assert found.accuracy_pool is not None
    assert found.gap is not None


def test_hidden_labels_change_nothing_but_the_report(teacher: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import ssl_suite.rounds as rounds

    first, told = label(teacher, read(select=TOP, soft=True, balance=True))
    build = rounds.build_data

    def blinded(cfg: dict[str, Any], tags: Any) -> Any:
        data = build(cfg, tags)
        hidden = np.setdiff1d(np.arange(len(data.targets)), data.labeled)
        source = data.parts["train"][0]
        source.targets = source.targets.copy()
        source.targets[hidden] = (source.targets[hidden] + 1) % 10
        data.targets = source.targets
        return data

    monkeypatch.setattr(rounds, "build_data", blinded)
    second, other = label(teacher, read(select=TOP, soft=True, balance=True))
    assert all(np.array_equal(getattr(first, key), getattr(second, key)) for key in vars(first))
    assert told.accuracy_pool != other.accuracy_pool


def test_labelled_samples_get_the_given_label_and_the_parents_guess(teacher: Path) -> None:
    labels, found = label(teacher, read(pool="labelled", soft=True, given=1.0))
    assert found.pool == 40
    assert np.array_equal(np.bincount(labels.target.argmax(1)), np.full(10, 4))
    half, _ = label(teacher, read(pool="labelled", soft=True, given=0.5))
    guess, _ = label(teacher, read(pool="labelled", soft=True, given=0.0))
    assert np.allclose(half.target, 0.5 * labels.target + 0.5 * guess.target)


def test_agreement_needs_checkpoints(teacher: Path) -> None:
    assert newest_checkpoint(teacher).is_file()
    with pytest.raises(ConfigError, match="save_top_k=-1"):
        label(teacher, read(rank="agreement", select=TOP))


def test_agreement_needs_a_rule_that_ranks() -> None:
    with pytest.raises(ConfigError, match="fixed takes no score"):
        read(rank="agreement", select={"_target_": FIXED})
    with pytest.raises(ConfigError, match="no rule takes no score"):
        read(rank="method")


def test_a_rule_that_keeps_nothing_is_told(teacher: Path) -> None:
    with pytest.raises(ConfigError, match=r"keeps none of .* samples, whose confidence is at most"):
        label(teacher, read(select={"_target_": FIXED, "threshold": 1.0}))


@pytest.mark.parametrize(("options", "message"), [
    ({"tresh": 1}, "takes no 'tresh'"), ({"pool": "some"}, "pool='some'"), ({"given": 1.5}, r"must lie in \[0, 1\]"),
    ({"select": {"_target_": FIXED, "treshold": 0.5}}, "did you mean 'threshold'"),
    ({"select": {"_target_": "ssl_suite.functional.selection.fix"}}, "did you mean 'fixed'"),
    ({"select": {"_target_": "os.system"}}, "outside the packages"), ({"select": {"share": 1}}, "_target_ is missing"),
    ({"weight": "entropy"}, "nothing verifies it"),
    ({"weight": "entropy", "select": {"_target_": MARGIN, "threshold": 0.01}}, "nothing verifies it"),
    ({"weight": "entropy", "select": {"_target_": MARGIN}}, "nothing verifies it"),
    ({"weight": "entropy", "select": {"_target_": FIXED, "threshold": 0.5}}, "nothing verifies it"),
    ({"weight": "entropy", "select": TOP}, "nothing verifies it")])
def test_bad_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read(**options)


@pytest.mark.parametrize("select", [{"_target_": FIXED}, {"_target_": FIXED, "threshold": 0.8},
                                    {"_target_": MARGIN, "threshold": 0.75}])
def test_entropy_weights_of_the_sure_are_allowed(select: dict[str, Any]) -> None:
    options = read(weight="entropy", select=select)
    unsure = np.random.default_rng(0).dirichlet([0.3, 0.3], 100)
    assert unsure[options.keep(unsure)].max(1).min() >= SURE > unsure.max(1).min()
    assert options.weights(np.array([[0.5, 0.5], [1.0, 0.0]])) == pytest.approx([1.0, 0.0])


def test_balance_gives_every_class_the_same_weight() -> None:
    probs = np.array([[0.9, 0.1]] * 6 + [[0.3, 0.7]] * 2)
    kept, weight = balanced(probs, np.ones(8, bool), np.ones(8, np.float32))
    assert [weight[kept & (probs.argmax(1) == c)].sum() for c in range(2)] == [4.0, 4.0]


def test_the_gap_is_the_weighted_accuracy_of_the_kept_less_that_of_all() -> None:
    probs = np.array([[0.9, 0.1], [0.8, 0.2], [0.4, 0.6], [0.45, 0.55]])
    y = np.array([0, 1, 1, 0])  # right, wrong, right, wrong
    assert gap(read(), probs, y) == pytest.approx(0.0)
    assert gap(read(select={**TOP, "share": 0.25}), probs, y) == pytest.approx(1.0 - 0.5)
    assert gap(read(select={**TOP, "share": 0.25}), probs, y, np.array([0.0, 3.0, 1.0, 2.0])) == pytest.approx(0.0 - 0.5)
    sure, less = (1.0 + (p * np.log(p) + (1 - p) * np.log(1 - p)) / np.log(2) for p in (0.9, 0.8))
    two = {"_target_": FIXED, "threshold": 0.75}
    for weight, expected in (("certainty", sure / (sure + less) - 0.5), ("entropy", (1 - sure) / (2 - sure - less) - 0.5)):
        assert gap(read(select=two, weight=weight), probs, y) == pytest.approx(expected, abs=1e-6)
    assert gap(read(select={**two, "threshold": 0.95}), probs, y) == 0.0  # nothing kept


def test_agreement_is_the_share_of_earlier_checkpoints_with_the_class_of_the_last(tmp_path: Path) -> None:
    folder = run(tmp_path, "model=supervised", "data=digits", "data.labels_per_class=4", "data.steps_per_epoch=1",
                 "trainer.max_epochs=4", "callbacks.checkpoint.save_top_k=-1", "optimizer.lr=0.03", "callbacks.pictures=null",
                 "callbacks.knn=null", "evaluation.probes=false", quick=False)
    loaded = load_run(folder)
    data = build_data(loaded.config, None)
    index, before = pool(data, "unlabelled")[:50], {k: v.clone() for k, v in loaded.method.state_dict().items()}
    found = agreement(loaded, data, "train", index)
    assert all(torch.equal(value, before[name]) for name, value in loaded.method.state_dict().items())
    classes = []
    for path in sorted((folder / "checkpoints").glob("*.ckpt")):
        loaded.method.load_state_dict(torch.load(path, weights_only=True)["state_dict"])
        classes.append(probabilities(loaded, data, "train", index).argmax(1))
    assert len(classes) == 4
    assert found.tolist() == pytest.approx([np.mean([c[i] == classes[-1][i] for c in classes[:-1]]) for i in range(50)])
    assert len(np.unique(found)) > 1


def test_a_rule_ranks_by_the_confidence_of_the_teachers_method(tmp_path: Path) -> None:
    folder = run(tmp_path, "model=t_similarity", "data=digits", "data.labels_per_class=4")
    options, plain = read(rank="method", select=TOP), read(select=TOP)
    labels, found = label(folder, options)
    loaded = load_run(folder)
    data, method = build_data(loaded.config, None), loaded.method

    @torch.no_grad()
    def agreements(part: str, index: np.ndarray) -> np.ndarray:
        return np.concatenate([t_similarity(method.votes(method(batch))).numpy() for batch in
                               data.clean_loader(part, index, shard=False)])

    own, held = agreements("train", labels.index), data.parts["val"][1]
    assert own[labels.kept].min() >= own[~labels.kept].max()
    assert labels.kept.sum() == round(0.25 * len(own))
    assert not np.array_equal(labels.kept, label(folder, plain)[0].kept)
    probs, y = probabilities(loaded, data, "val"), data.parts["val"][0].targets[held]
    assert found.gap == pytest.approx(gap(options, probs, y, agreements("val", held)))


def test_a_method_without_a_confidence_is_told_before_anything_is_trained(teacher: Path, tmp_path: Path) -> None:
    options = {"rank": "method", "select": TOP}
    with pytest.raises(ConfigError, match=r"as model=t_similarity has; Classifier has none"):
        label(teacher, read(**options))
    given = ["data=digits", "data.labels_per_class=4"]
    for model, message in (("supervised", "Classifier has none"), ("t_similarity", None)):
        content = {"stages": {"a": {"train": [f"model={model}"]}, "b": {"train": ["model=supervised"], "labels": options}}}
        plan = self_train.read_plan(content, tmp_path, 0, given)
        if message is None:
            self_train.check(plan)
            continue
        with pytest.raises(ConfigError, match=message):
            self_train.run(plan, content)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("modality", ["series", "speech"])
def test_series_and_speech_learn_from_a_stage_before(modality: str, tmp_path: Path) -> None:
    given = ["model=supervised", *tiny_data(modality, tmp_path), "data.labels_per_class=2"]
    labels, found = label(run(tmp_path / "teacher", *given), read(select={**TOP, "share": 0.5}))
    labels.save(tmp_path / "labels.npz")
    student = run(tmp_path / "student", *given, f"data.pseudo_labels={tmp_path / 'labels.npz'}", "seed=1000", "data.seed=0")
    data = build_data(load_run(student).config, None)
    assert found.kept == round(0.5 * found.pool) > 0
    assert set(data.pseudo) == set(labels.index[labels.kept])
    assert np.array_equal(data.targets[labels.index[labels.kept]], labels.target[labels.kept])
    assert len(data.labeled) == 6 + found.kept


def test_alarms() -> None:
    before = Report("a", 90, 30, [10, 10, 10], 0.9, 1.0)
    now = Report("b", 90, 30, [25, 5, 0], 0.9, 0.41, gap=-0.02)
    told = " ".join(alarms(now, before, ("cat", "dog", "cow")))
    for part in ("no sample is kept of class cow", "1.00 -> 0.41", "class dog shrinks: 10 of 30 kept", "2.0% less accurate"):
        assert part in told
    assert alarms(before, None, ("cat", "dog", "cow")) == []
    assert alarms(before, before, ("cat", "dog", "cow")) == []


def digits(**options: Any) -> Any:
    from datamodules.images.digits import DigitsDataModule

    data = DigitsDataModule(**options)
    data.setup()
    return data


def test_an_empty_unlabelled_set_is_told() -> None:
    with pytest.raises(ConfigError, match=r"there are no unlabelled samples.*data\.labels_per_class"):
        pool(digits(), "unlabelled")


def test_masks_are_sent_to_their_own_script(tmp_path: Path) -> None:
    from datamodules.images.segmentation_arrays import SegmentationArraysDataModule

    data = SegmentationArraysDataModule(masks(tmp_path), labels=4)
    data.setup()
    with pytest.raises(ConfigError, match=r"have masks: take scripts/self_training_masks\.py"):
        check_start(data, ["unlabelled"])


def test_a_class_without_a_label_is_told() -> None:
    with pytest.raises(ConfigError, match="has no labelled sample"):
        check_start(digits(labels=5), ["unlabelled"])


@pytest.mark.parametrize("path", sorted((ROOT / "scripts" / "plans").glob("*.yaml")), ids=lambda p: p.stem)
def test_plans_are_valid_and_their_overrides_compose(path: Path, tmp_path: Path) -> None:
    from tests.configs import composed

    plan = self_train.read_plan(yaml.safe_load(path.read_text()), tmp_path, 3, ["data=digits", "data.labels_per_class=4"])
    for number, stage in enumerate(plan.stages):
        given = plan.given(number)
        assert f"seed={3 + 1000 * number}" in given
        assert "data.seed=3" in given
        assert (f"data.pseudo_labels={tmp_path / stage.name / 'pseudo_labels.npz'}" in given) == (stage.labels is not None)
        assert composed(*(o for o in given[1:] if not o.startswith("hydra.")))["data"]["labels_per_class"] == 4


@pytest.mark.parametrize(("content", "message"), [
    ({"stages": {"a": {}}, "stage": 1}, "did you mean 'stages'"), ({"stages": {"a": {"trian": []}}}, "did you mean 'train'"),
    ({"stages": {"a": {"labels": {}}}}, "is no stage before it"), ({"stages": {"a": {}}, "ensemble": ["b"]}, "no stage 'b'")])
def test_bad_plans_are_refused(content: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        self_train.read_plan(content, tmp_path, 0, [])


def test_a_folder_of_another_plan_is_refused(tmp_path: Path) -> None:
    made = {"plan": {"stages": {"a": {}}}, "seed": 0}
    with claimed(tmp_path, made):
        assert json.loads((tmp_path / "plan.json").read_text())["seed"] == 0
        with pytest.raises(ConfigError, match="still at work"), claimed(tmp_path, made):
            pass
    with pytest.raises(ConfigError, match="another plan or other overrides"), claimed(tmp_path, {**made, "seed": 1}):
        pass


def test_labels_of_a_stage_are_made_once(teacher: Path, tmp_path: Path) -> None:
    (tmp_path / "teacher").symlink_to(teacher)
    plan = self_train.read_plan({"stages": {"teacher": {}, "student": {"labels": {"select": TOP}}}}, tmp_path, 0, [])
    found = self_train.prepare(plan, 1)
    before = (tmp_path / "student" / "pseudo_labels.npz").stat().st_mtime_ns
    assert self_train.prepare(plan, 1) == found
    assert (tmp_path / "student" / "pseudo_labels.npz").stat().st_mtime_ns == before
    assert PseudoLabels.load(tmp_path / "student" / "pseudo_labels.npz").kept.sum() == found.kept


def test_stages_of_a_curriculum_keep_more_and_more(tmp_path: Path) -> None:
    content = yaml.safe_load((ROOT / "scripts" / "plans" / "curriculum.yaml").read_text())
    stages = self_train.read_plan(content, tmp_path, 0, []).stages
    probs = np.random.default_rng(0).dirichlet(np.ones(3), 50)
    kept = [stage.labels.keep(probs) for stage in stages if stage.labels is not None]
    assert [k.sum() for k in kept] == [10, 20, 30, 40, 50]
    assert all(probs[k].max(1).min() >= probs[~k].max(1).max() for k in kept[:-1])
    assert read(select={"_target_": CURRICULUM, "turn": 3}).keep(probs).sum() == 30


def unsure(probs: np.ndarray, share: float) -> np.ndarray:
    return np.isin(np.arange(len(probs)), np.argsort(probs.max(1))[: round(share * len(probs))])


@pytest.mark.parametrize("where", ["common", "overrides"])
def test_a_rule_of_your_own(where: str, tmp_path: Path) -> None:
    rule = {"_target_": "tests.unit.test_rounds.unsure", "share": 0.5}
    content = {"stages": {"a": {}, "b": {"labels": {"select": rule}}}}
    with pytest.raises(ConfigError, match=r"trusted_packages=\[tests\]"):
        self_train.read_plan(content, tmp_path, 0, [])
    trusted = ["trusted_packages=[tests]"]
    plan = self_train.read_plan({**content, "common": trusted} if where == "common" else content, tmp_path, 0,
                                [] if where == "common" else trusted)
    assert plan.stages[1].labels is not None
    assert plan.stages[1].labels.keep(np.array([[0.9, 0.1], [0.5, 0.5]])).tolist() == [False, True]
    del rule["share"]
    with pytest.raises(ConfigError, match=r"select\.share is missing: unsure needs it"):
        self_train.read_plan(content, tmp_path, 0, trusted)


@pytest.mark.parametrize(("stop", "value", "trained"), [
    (True, -0.1, ["teacher"]), (False, -0.1, ["teacher", "student", "last"]), (True, 0.0, ["teacher", "student", "last"])])
def test_a_rule_that_picks_worse_than_none_ends_a_plan(stop: bool, value: float, trained: list[str], teacher: Path, tmp_path: Path,
                                                       monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    content = {"stages": {"teacher": {}, "student": {"labels": {"select": TOP}}, "last": {}}, "stop_on_gap": stop}
    (tmp_path / "teacher").symlink_to(teacher)
    started: list[str] = []

    def finished(folder: Path, overrides: list[str]) -> Path:
        started.append(folder.name)
        folder.mkdir(exist_ok=True)
        return teacher

    monkeypatch.setattr(self_train, "trained_run", finished)
    monkeypatch.setattr("ssl_suite.rounds.gap", lambda *_: value)
    rows = self_train.run(self_train.read_plan(content, tmp_path, 0, []), content)
    assert list(rows) == started == trained
    assert json.loads((tmp_path / "rounds.json").read_text()) == rows
    printed = capsys.readouterr()
    assert ("stopped before stage student: its gap is -0.100" in printed.out) == (len(trained) == 1)
    assert ("10.0% less accurate" in printed.err) == (value < 0)
