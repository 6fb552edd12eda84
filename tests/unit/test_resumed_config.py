"""What may change when a run is taken up again, and what the trainer refuses."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.plugins import MixedPrecision
from torch import Tensor, nn
from torch.utils.data import DataLoader

from ssl_suite.batch import Batch, StepOutput
from ssl_suite.config import ConfigError
from ssl_suite.data.sampler import EpochSampler
from ssl_suite.devices import native_precision
from ssl_suite.functional.ema import make_teacher
from ssl_suite.method import Method
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


class Taught(Method):
    """A linear map with a teacher, which notes for each batch whether weights, teacher and rate moved."""

    teachers = {"teacher": "backbone"}

    def __init__(self) -> None:
        super().__init__(nn.Linear(4, 1), nn.Identity())  # type: ignore[arg-type]
        self.teacher = make_teacher(self.backbone)
        self.moved: list[tuple[bool, ...]] = []

    def momentum(self, step: int, total: int) -> float:
        return 0.5

    def step(self, batch: Batch) -> StepOutput:
        return StepOutput(self.backbone(batch["x"]).mean() * batch["scale"].mean())

    def on_train_batch_start(self, *args: Any) -> None:
        self.before = self.state()

    def on_train_batch_end(self, *args: Any) -> None:
        self.moved.append(tuple(not torch.equal(a, b) for a, b in zip(self.before, self.state(), strict=True)))

    def state(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.backbone.weight.detach().clone(), self.teacher.weight.clone(), torch.tensor(self.lr_schedulers().get_last_lr())


@pytest.mark.filterwarnings("ignore")
def test_control_with_float16_the_teacher_moves_in_a_step_left_out() -> None:
    scaled = MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu"))
    trainer = L.Trainer(accelerator="cpu", plugins=[scaled], max_epochs=1, logger=False, enable_checkpointing=False,
                        enable_progress_bar=False, enable_model_summary=False)
    method, scales = Taught(), [1.0, 1.0, 1e36, 1.0]  # the rate begins at 0, and the third gradient is too large once it is scaled
    trainer.fit(method, DataLoader([{"x": torch.ones(4), "scale": scale} for scale in scales]))  # type: ignore[arg-type]
    assert method.moved[1:] == [(True, True, True), (False, True, True), (True, True, True)]
