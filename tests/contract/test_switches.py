"""The switches that hold for every method: a compiled step in one graph, compiled networks, and checkpointed activations."""

from __future__ import annotations

import shutil
from typing import Any

import pytest
import torch

from ssl_suite.config import locate
from ssl_suite.nn.blocks import attention_blocks, checkpoint_blocks, compile_networks
from ssl_suite.run import build_method
from ssl_suite.testing import Case
from tests.configs import cases, model_config

pytestmark = pytest.mark.slow
BREAKS = {"ctc": "the shape of what PyTorch's CTC loss keeps depends on the lengths"}
"""{method: reason} of steps that are not one graph; kept strict. Its network is one (`test_the_switches_change_no_loss`)."""


def case_of(name: str, modality: Any) -> Case:
    cfg = model_config(name)
    tags = locate(cfg["model"]["_target_"], name).tags
    return Case(lambda backbone, views, spec: build_method(cfg, backbone, views, spec), tags, modality)


@pytest.mark.parametrize(("name", "modality"), {name: (name, modality) for name, modality in reversed(cases())}.values())
def test_a_step_is_one_graph(name: str, modality: Any, request: pytest.FixtureRequest) -> None:
    """Views, networks and loss together: ``fullgraph`` raises at a break."""
    if name in BREAKS:
        request.applymarker(pytest.mark.xfail(reason=BREAKS[name], strict=True))
    torch._dynamo.reset()
    losses = []
    for compiled in (False, True):
        method = case_of(name, modality).build()
        method.progress = 0.99
        torch.manual_seed(5)
        step = torch.compile(method.step, fullgraph=True, backend="eager") if compiled else method.step
        losses.append(float(step(case_of(name, modality).batch()).loss.detach()))
    assert losses[1] == pytest.approx(losses[0], rel=1e-5, abs=1e-6)


@pytest.mark.parametrize(("name", "modality"), cases())
def test_the_switches_change_no_loss(name: str, modality: Any) -> None:
    torch._dynamo.reset()
    case, losses = case_of(name, modality), []
    for switch in (lambda method: None, lambda method: compile_networks(method, fullgraph=True, backend="aot_eager"),
                   lambda method: checkpoint_blocks(method) if attention_blocks(method) else None):
        method = case.build()
        method.progress = 0.99
        switch(method)
        torch.manual_seed(5)
        loss = method.step(case.batch()).loss
        loss.backward()
        losses.append(float(loss.detach()))
    assert losses[1:] == pytest.approx([losses[0]] * 2, rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("name", ["simclr", "mae"])
@pytest.mark.skipif(shutil.which("c++") is None, reason="PyTorch's compiler needs a C++ compiler on a CPU")
def test_the_compiler_changes_no_loss(name: str) -> None:
    """With code that is made, not only traced: a convolutional net and a transformer."""
    torch._dynamo.reset()
    case, losses = case_of(name, "images"), []
    for compiled in (False, True):
        method = case.build()
        if compiled:
            compile_networks(method, fullgraph=True)
        torch.manual_seed(5)
        loss = method.step(case.batch()).loss
        loss.backward()
        losses.append(float(loss.detach()))
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
