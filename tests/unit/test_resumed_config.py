"""What may change when a run is taken up again, and what the trainer refuses."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest

from ssl_suite.config import ConfigError
from ssl_suite.data.sampler import EpochSampler
from ssl_suite.devices import native_precision
from ssl_suite.run import build_trainer, check_same_run
from ssl_suite.testing import tiny_spec
from tests.configs import composed
from tests.unit.data.test_sampler import twice_and_never

SAVED: dict[str, Any] = {"seed": 0, "model": {"_target_": "a.B", "mixup": 0.8}, "data": {"batch_size": 8, "num_workers": 0},
                         "trainer": {"max_epochs": 3}, "resume": None}


@pytest.mark.parametrize(("group", "key", "value"), [("model", "mixup", 0.5), ("data", "batch_size", 16)])
def test_what_would_make_another_run_is_refused(group: str, key: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=rf"{group}\.{key} was .* cannot become {value}"):
        check_same_run(SAVED, {**SAVED, group: {**SAVED[group], key: value}})


def test_the_rest_is_named() -> None:
    with pytest.warns(UserWarning, match=r"trainer\.max_epochs was 3 and is 5"):
        check_same_run(SAVED, {**SAVED, "trainer": {"max_epochs": 5}})
    with pytest.warns(UserWarning, match=r"data\.num_workers was 0 and is 2"):
        check_same_run(SAVED, {**SAVED, "data": {"batch_size": 8, "num_workers": 2}})


def test_control_the_same_settings_pass_in_silence() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_same_run(SAVED, {**SAVED, "resume": "auto"})


@pytest.mark.parametrize(("changed", "twice", "never"), [({}, False, False), ({"batch_size": 16}, False, True),
                                                         ({"batch_size": 4}, True, False), ({"seed": 1}, True, True)])
def test_control_without_refusing_samples_are_seen_twice_or_never(changed: dict[str, int], twice: bool, never: bool) -> None:
    first, then = ([EpochSampler(range(96), **{"batch_size": 8, "seed": 0, **given})] for given in ({}, changed))
    assert tuple(map(bool, twice_and_never(first, then, 5))) == (twice, never)


@pytest.mark.parametrize(("precision", "refused"), [("16-mixed", True), ("bf16-mixed", False)])
def test_float16_is_refused(precision: str, refused: bool, tmp_path: Path) -> None:
    cfg = composed("model=mae", "data=digits", f"trainer.precision={precision}", "callbacks.progress=null", folder=str(tmp_path))
    if not refused:
        assert build_trainer(cfg, tmp_path, tiny_spec("images")).precision == precision
        return
    with pytest.raises(ConfigError, match=r"trainer\.precision=16-mixed.*bf16-mixed"):
        build_trainer(cfg, tmp_path, tiny_spec("images"))


@pytest.mark.parametrize("trainer", ["cpu", "gpu", "ddp", "fsdp"])
def test_precision_is_settled_when_the_config_is_read(trainer: str) -> None:
    given = composed("model=mae", "data=digits", f"trainer={trainer}")["trainer"]
    assert given["precision"] == native_precision(given["accelerator"])
