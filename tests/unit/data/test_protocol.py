"""Options of a split: one seed gives one split, a saved split gives it again, and contradictions are told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from datamodules.images.digits import DigitsDataModule
from ssl_suite.config import ConfigError, validate
from ssl_suite.data.protocol import divide, label
from ssl_suite.data.sources import ArraySource
from ssl_suite.methods.self_training.fixmatch import FixMatch
from ssl_suite.run import GROUPS, build_data
from tests.configs import composed
from tests.runs import run, tiny_data


def digits(**options: Any) -> DigitsDataModule:
    data = DigitsDataModule(**options)
    data.setup("fit")
    return data


OPTIONS: list[dict[str, Any]] = [
    {"labels_per_class": 3}, {"labels": 70, "label_noise": 0.4}, {"labels": 0.0625}, {"long_tail": 0.1}, {"val_from": "end"},
    {"labels_per_class": 4, "selection_bias": 0.5}, {"label_noise": 0.5, "mistaken_for": {1: 7}}]


@pytest.mark.parametrize("options", OPTIONS, ids=lambda o: "-".join(o))
def test_one_seed_gives_one_split_and_its_file_gives_it_again(options: dict[str, Any], tmp_path: Path) -> None:
    first = digits(seed=3, **options).split()
    np.savez(tmp_path / "split.npz", **first)
    for again in (digits(seed=3, **options), digits(seed=3, split_file=tmp_path / "split.npz")):
        assert all(np.array_equal(first[key], value) for key, value in again.split().items())
    plain = digits(seed=3).split()
    assert any(not np.array_equal(plain[key], first[key]) for key in plain), "the option changes nothing"
    assert not np.intersect1d(first["train"], first["val"]).size
    assert set(first["labeled"]) <= set(first["train"])
    with pytest.raises(ValueError, match=r"made for other training samples.*data\.seed"):
        digits(seed=4, split_file=tmp_path / "split.npz")


def test_the_last_samples_are_held_out() -> None:
    kept, held = divide(ArraySource(np.zeros((10, 1, 4))), 0.2, 0, {"val_from": "end"})
    assert kept.tolist() == list(range(8))
    assert held.tolist() == [8, 9]
    assert [len(part) for part in divide(ArraySource(np.zeros((10, 1, 4))), 0.0, 0, {"val_from": "end"})] == [10, 0]


def test_a_class_without_a_label_is_told() -> None:
    with pytest.warns(UserWarning, match=r"no labelled sample is of class .*labels_per_class"):
        digits(labels=5)


@pytest.mark.parametrize(("modality", "target"), [("series", None), ("speech", "text"), ("images", "mask")])
def test_a_share_of_labels_passes_for_all_data(modality: str, target: str | None, tmp_path: Path) -> None:
    def built(labels: float) -> Any:
        config = composed("model=supervised", *tiny_data(modality, tmp_path, target), f"data.labels={labels}", folder=str(tmp_path))
        validate(config, GROUPS)
        return build_data(config, None)

    data = built(0.25)
    assert len(data.labeled) == round(len(data.parts["train"][1]) / 4)
    with pytest.raises(ConfigError, match=r"data\.labels=1\.0 must be a whole number"):
        built(1.0)


def test_methods_for_unlabelled_samples_are_told_where_there_are_none(recwarn: pytest.WarningsRecorder) -> None:
    def built(*overrides: str) -> Any:
        return build_data(composed("model=fixmatch", "data=digits", "data.labels_per_class=null", *overrides), FixMatch.tags)

    built("data.labels=1131")
    assert not [w for w in recwarn if "are labelled" in str(w.message)]
    with pytest.warns(UserWarning, match=r"all 1132 training samples are labelled.*data\.labels_per_class=4.*a supervised method"):
        built()
    with pytest.raises(ConfigError, match=r"the training part is empty; lower data\.val_fraction"):
        built("data.val_fraction=0.999")


@pytest.mark.parametrize("suffix", [".npy", ".txt"])
def test_a_list_says_which_samples_are_labelled(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"labelled{suffix}"
    if suffix == ".npy":
        np.save(path, np.array([9, 2, 5]))
    else:
        path.write_text("9\n2\n5\n")
    with pytest.warns(UserWarning, match="no labelled sample is of class"):
        data = digits(split_file=path, label_noise=1.0, mistaken_for=dict.fromkeys(range(1, 10), 0))
    assert data.labeled.tolist() == [2, 5, 9]
    assert not data.targets.any()


def test_labelled_samples_that_are_not_trained_on_are_told(tmp_path: Path) -> None:
    plain, tailed = digits().split(), digits(long_tail=0.1).split()
    gone = np.setdiff1d(np.arange(1258), np.concatenate([tailed["train"], tailed["val"]]))
    for options, strange in (({}, plain["val"]), ({"long_tail": 0.1}, gone)):
        np.save(tmp_path / "list.npy", np.concatenate([strange[:7][::-1], (tailed if options else plain)["train"][:50]]))
        first = ", ".join(map(str, strange[:5]))
        with pytest.raises(ValueError, match=rf"list\.npy lists 7 labelled .* first {first}: .*val_fraction=0.*long_tail=null"):
            digits(split_file=tmp_path / "list.npy", **options)
    assert len(digits(split_file=tmp_path / "list.npy", val_fraction=0.0).labeled) == 57
    np.savez(tmp_path / "split.npz", **{**plain, "labeled": plain["val"][:2]})
    with pytest.raises(ValueError, match=rf"split\.npz lists 2 .* first {plain['val'][0]}, {plain['val'][1]}: "):
        digits(split_file=tmp_path / "split.npz")


@pytest.mark.parametrize(("changes", "match"), [
    ({"val": lambda s: s["train"][:6]}, r"6 samples both in train and in val, first "),
    ({"targets": lambda s: s["targets"] + 7}, r"targets that are no class, first .*the 10 classes are numbered from 0"),
    ({"targets": lambda s: s["targets"] - 1}, r"targets that are no class, first "),
    ({"targets": lambda s: s["targets"][:100]}, r"targets of shape \(100,\).*each of the 1258 training samples"),
    ({"targets": lambda s: s["targets"] + 0.5}, r"targets of shape \(1258,\) and type float64")])
def test_a_split_that_contradicts_itself_is_told(changes: dict[str, Any], match: str, tmp_path: Path) -> None:
    saved = digits().split()
    np.savez(tmp_path / "split.npz", **{**saved, **{key: change(saved) for key, change in changes.items()}})
    with pytest.raises(ValueError, match=rf"split\.npz .*{match}"):
        digits(split_file=tmp_path / "split.npz")


@pytest.mark.filterwarnings("ignore:loadtxt")
@pytest.mark.parametrize(("suffix", "values"), [(".txt", None), (".npy", np.array([], np.int64)), (".npy", np.ones(1258, bool)),
                                                (".npy", np.array([0.5, 3.0]))])
def test_a_list_without_positions_is_told(suffix: str, values: np.ndarray | None, tmp_path: Path) -> None:
    path = tmp_path / f"list{suffix}"
    if values is None:
        path.write_text("")
    else:
        np.save(path, values)
    with pytest.raises(ValueError, match=rf"list\{suffix} holds \d+ values of type .*positions of the labelled samples"):
        digits(split_file=path)


def test_contradictions_are_told(tmp_path: Path) -> None:
    np.save(tmp_path / "list.npy", np.array([4000]))
    np.savez(tmp_path / "split.npz", **digits().split())
    for options, match in (({"split_file": tmp_path / "list.npy"}, "made for other training samples than these 1258"),
                           ({"split_file": tmp_path / "split.npz", "long_tail": 0.1}, "what data.long_tail asks for"),
                           ({"split_file": tmp_path / "list.npy", "labels": 9}, "what data.labels asks for"),
                           ({"selection_bias": 1.0}, "give data.labels_per_class or data.labels")):
        with pytest.raises(ValueError, match=match):
            digits(**options)
    with pytest.raises(FileNotFoundError, match=r"does not exist; give split\.npz"):
        digits(split_file=tmp_path / "none.npz")


def test_options_that_need_classes_or_equal_lengths_say_so() -> None:
    bare, ragged = ArraySource(np.zeros((6, 4))), ArraySource(np.zeros((6, 4)), np.arange(6) % 2, np.full(6, 3))
    with pytest.raises(ValueError, match=r"data\.long_tail needs class labels"):
        divide(bare, 0.0, 0, {"long_tail": 0.1})
    with pytest.raises(ValueError, match=r"data\.selection_bias needs class labels"):
        label(bare, np.arange(6), 0, 0, {"selection_bias": 1.0, "labels": 2})
    with pytest.raises(ValueError, match=r"needs them of equal length"):
        label(ragged, np.arange(6), 2, 0, {"selection_bias": 1.0, "labels": 2})


def test_a_run_keeps_its_split_and_another_takes_it_over(tmp_path: Path) -> None:
    first = run(tmp_path / "first", "model=supervised", "data=digits", "data.labels_per_class=2", "data.label_noise=0.5")
    again = run(tmp_path / "again", "model=supervised", "data=digits", f"data.split_file={first / 'split.npz'}")
    ours, theirs = (dict(np.load(folder / "split.npz")) for folder in (first, again))
    assert len(ours["labeled"]) == 20
    assert all(np.array_equal(ours[key], theirs[key]) for key in ours)
    weights = [load_file(folder / "backbone.safetensors") for folder in (first, again)]
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())
