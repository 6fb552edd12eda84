"""The parts of the config check that the contract over all configs does not single out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypedDict, Unpack

import pytest
import torch

from ssl_suite.config import ConfigError, arguments, check_target, describe, fits, locate, nearest, require, targets, validate


class Extra(TypedDict, total=False):
    speed: float


class Base:
    def __init__(self, size: int, **rest: Unpack[Extra]) -> None: ...


class Child(Base):
    def __init__(self, name: str, **rest: Any) -> None: ...


class Open:
    def __init__(self, a: int = 1, **anything: Any) -> None: ...


@pytest.mark.parametrize(("value", "annotation", "answer"), [
    (1, int, True), (True, int, False), (1.0, int, False), ("1", int, False), (1, float, True), (True, float, False),
    (None, int | None, True), (None, int, False), ("a", Literal["a", "b"], True), ("c", Literal["a", "b"], False),
    ([1, 2], Sequence[int], True), ([1, "a"], Sequence[int], False), ("ab", Sequence[str], False), (None, Sequence[int], False),
    ([0.1, 0.9], tuple[float, float], True), ([0.1], tuple[float, float], False), ([1, 2, 3], tuple[int, ...], True),
    ("x", Mapping[str, int], False), ({"a": 1}, Mapping[str, int], True), ("x", Callable[..., int], False),
    ("file", str | Path, True), ("file", Path, True), (3, Path, False), ("fast", float | torch.Tensor, False), (0.1, Any, True)])
def test_fits(value: Any, annotation: Any, answer: bool) -> None:
    assert fits(value, annotation) is answer


def test_arguments_follow_keywords_through_the_bases() -> None:
    known, needed, open_ended = arguments(Child)
    assert known == {"name": str, "size": int, "speed": float}
    assert needed == {"name"}
    assert not open_ended
    assert arguments(Open)[2]


def test_open_ended_targets_still_refuse_near_misses() -> None:
    where = "tests.unit.test_config"
    validate({"callbacks": {"a": {"_target_": f"{where}.Open", "something_else": 1}}}, ("callbacks",), ["tests"])
    with pytest.raises(ConfigError, match="'b'"):
        validate({"callbacks": {"a": {"_target_": f"{where}.Child", "name": "x", "b": 1}}}, ("callbacks",), ["tests"])


def test_nearest() -> None:
    assert nearest("temprature", ["temperature", "views"]) == "; did you mean 'temperature'?"
    assert nearest("zzz", ["b", "a"]) == "; valid here: a, b"
    assert nearest("zzz", []) == "; valid here: nothing"


def test_locate_tells_what_is_missing() -> None:
    assert locate("torch.optim.AdamW", "here") is torch.optim.AdamW
    with pytest.raises(ConfigError, match=r"here: torch.optim has no 'AdamM'; did you mean 'Adam"):
        locate("torch.optim.AdamM", "here")
    with pytest.raises(ConfigError, match="PYTHONPATH"):
        locate("no_such_package.Thing", "here")


def test_near_package_is_named() -> None:
    with pytest.raises(ConfigError, match="did you mean 'torch'"):
        check_target("trch.optim.AdamW", "here")


def test_require_names_the_extra() -> None:
    assert require("json", extra="speech").loads("1") == 1
    with pytest.raises(ImportError, match=r'pip install "ssl-suite\[speech\]"'):
        require("no_such_module", extra="speech")


def test_targets_are_found_at_any_depth() -> None:
    cfg = {"a": {"_target_": "x", "b": [{"c": {"_target_": "y"}}]}, "d": None}
    assert [(where, node["_target_"]) for where, node in targets(cfg)] == [("a", "x"), ("a.b[0].c", "y")]


def test_describe() -> None:
    assert describe(int) == "int"
    assert describe(int | None) == "int | None"
