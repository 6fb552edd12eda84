"""Pseudo-labels of one stage for the next, what is said of them, and plans."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from ssl_suite.config import ConfigError
from ssl_suite.data.pseudo import PseudoLabels
from ssl_suite.io.checkpoints import newest_checkpoint
from ssl_suite.programs import claimed
from ssl_suite.rounds import Labelling, Report, alarms, balanced, check_start, label, pool
from tests.conftest import ROOT
from tests.runs import run

sys.path.insert(0, str(ROOT / "scripts"))
import self_train

FIXED = "ssl_suite.functional.selection.fixed"
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
        read(rank="agreement", select={"_target_": FIXED}).keep(np.full((2, 2), 0.5), np.ones(2))


def test_a_rule_that_keeps_nothing_is_told(teacher: Path) -> None:
    with pytest.raises(ConfigError, match=r"keeps none of .* samples, whose confidence is at most"):
        label(teacher, read(select={"_target_": FIXED, "threshold": 1.0}))


@pytest.mark.parametrize(("options", "message"), [
    ({"tresh": 1}, "takes no 'tresh'"), ({"pool": "some"}, "pool='some'"), ({"given": 1.5}, r"must lie in \[0, 1\]"),
    ({"select": {"_target_": FIXED, "treshold": 0.5}}, "did you mean 'threshold'"),
    ({"select": {"_target_": "ssl_suite.functional.selection.fix"}}, "did you mean 'fixed'"),
    ({"select": {"_target_": "os.system"}}, "outside the packages"), ({"select": {"share": 1}}, "_target_ is missing"),
    ({"weight": "entropy"}, "needs a rule with a threshold")])
def test_bad_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read(**options)


def test_entropy_weights_with_a_threshold_are_allowed() -> None:
    options = read(weight="entropy", select={"_target_": FIXED, "threshold": 0.8})
    assert options.weights(np.array([[0.5, 0.5], [1.0, 0.0]])) == pytest.approx([1.0, 0.0])


def test_balance_gives_every_class_the_same_weight() -> None:
    probs = np.array([[0.9, 0.1]] * 6 + [[0.3, 0.7]] * 2)
    kept, weight = balanced(probs, np.ones(8, bool), np.ones(8, np.float32))
    assert [weight[kept & (probs.argmax(1) == c)].sum() for c in range(2)] == [4.0, 4.0]


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
