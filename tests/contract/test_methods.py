"""Every method config, in every modality its tags name, passes every check."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest

from ssl_suite.config import locate
from ssl_suite.run import build_method
from ssl_suite.testing import CHECKS, Case
from tests.configs import composed, names

SQUARE = {"odd_sizes": "a quarter turn needs square pictures"}
EXPECTED_FAILURES: dict[str, dict[str, str]] = {"ttt": SQUARE, "label_augmentation": SQUARE}
"""{method: {check: reason}}; kept strict: a check that passes after all fails the test."""


@cache
def config(name: str) -> dict[str, Any]:
    return composed(f"model={name}", "data=digits")


def cases() -> list[tuple[str, str]]:
    found = []
    for name in names("model"):
        model = config(name).get("model")
        if model:
            tags = locate(model["_target_"], name).tags
            found += [(name, modality) for modality in tags.modalities]
    return found


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize(("name", "modality"), cases())
def test_method(name: str, modality: Any, check: str, request: pytest.FixtureRequest) -> None:
    reason = EXPECTED_FAILURES.get(name, {}).get(check)
    if reason:
        request.applymarker(pytest.mark.xfail(reason=reason, strict=True))
    cfg = config(name)
    tags = locate(cfg["model"]["_target_"], name).tags
    CHECKS[check](Case(lambda backbone, views, spec: build_method(cfg, backbone, views, spec), tags, modality))
