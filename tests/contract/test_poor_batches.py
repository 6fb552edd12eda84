"""Batches with nothing to tell apart: a single sample, or samples that are all the same."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from ssl_suite.config import ConfigError
from ssl_suite.run import build_data
from ssl_suite.testing import Case
from tests.configs import case, cases, composed, in_turn, tags_of

PRETRAINING = [(name, modality) for name, modality in cases() if tags_of(name).task == "pretraining"]
APART = sorted({name for name, _ in PRETRAINING if tags_of(name).joint_embedding})


def stepped(which: Case, rows: int, constant: bool) -> tuple[Tensor, list[Tensor]]:
    """Loss of a training step and its gradients."""
    method: Any = which.build().train()
    method.progress = 0.5
    batch = which.batch(rows)
    if constant:
        batch["x"] = torch.full_like(batch["x"], 77 if batch["x"].dtype == torch.uint8 else 0.3)
    loss = method.step(batch).loss
    loss.backward()
    return loss, [p.grad for p in method.parameters() if p.grad is not None]


@pytest.mark.parametrize(("name", "modality"), in_turn(PRETRAINING))
def test_constant_samples_give_a_finite_step(name: str, modality: str) -> None:
    loss, gradients = stepped(case(name, modality), 6, constant=True)
    assert loss.isfinite()
    assert all(gradient.isfinite().all() for gradient in gradients)


@pytest.mark.parametrize(("name", "modality"), in_turn([(n, m) for n, m in PRETRAINING if n not in APART]))
def test_one_sample_gives_a_finite_step(name: str, modality: str) -> None:
    loss, gradients = stepped(case(name, modality), 1, constant=False)
    assert loss.isfinite()
    assert all(gradient.isfinite().all() for gradient in gradients)


@pytest.mark.parametrize("name", APART)
def test_one_sample_is_refused_where_samples_are_told_apart(name: str) -> None:
    data = {"images": "digits", "series": "series"}[tags_of(name).modalities[0]]
    with pytest.raises(ConfigError, match=r"data\.batch_size=1: .*two or more"):
        build_data(composed(f"model={name}", f"data={data}", "data.batch_size=1"), tags_of(name))
