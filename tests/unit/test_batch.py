"""Spec and Tags as data."""

from __future__ import annotations

import dataclasses
import json

import pytest

from ssl_suite.batch import Spec, Tags


def test_a_spec_survives_json() -> None:
    spec = Spec("speech", (16000,), classes=("yes", "no"), rate=16000, mean=(0.1,), std=(0.2,))
    assert Spec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec
    assert spec.num_classes == 2
    assert Spec("images", (1, 8, 8)).num_classes == 0


def test_specs_and_tags_are_frozen() -> None:
    for thing, key in ((Spec("images", (1, 8, 8)), "shape"), (Tags("paper", "pretraining"), "task")):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(thing, key, None)


def test_a_spec_of_another_version_is_refused() -> None:
    with pytest.raises(TypeError, match="colour"):
        Spec.from_dict({"modality": "images", "shape": [1, 8, 8], "colour": True})
