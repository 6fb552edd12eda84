"""No training step waits for the device: each runs on a device that cannot answer.

Fake tensors claim to lie on a GPU and hold no values. Reading one (``.item()``, ``if``, a mask as an index, ``nonzero``) raises,
whoever does it, libraries included; copies between host and device, which wait too, are watched for. No GPU is needed.
"""

from __future__ import annotations

import traceback
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from ssl_suite.config import locate
from ssl_suite.run import build_method
from ssl_suite.testing import Case
from tests.configs import cases, in_turn, model_config

EXPECTED_FAILURES: dict[str, str] = {"ctc": "PyTorch's CTC loss reads the lengths on the host"}
"""{method: reason}; kept strict."""


class Host(TorchDispatchMode):
    """Notes what is copied between host and device, and answers for tensors of the host."""

    def __init__(self) -> None:
        super().__init__()
        self.copies: list[str] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = function(*args, **(kwargs or {}))
        devices = {t.device.type for t in tree_leaves((args, kwargs, out)) if isinstance(t, Tensor) and t.ndim}
        if "copy" in str(function) and len(devices) > 1:
            ours = [f"{f.filename}:{f.lineno} {f.line}" for f in traceback.extract_stack() if "ssl_suite" in f.filename]
            self.copies.append(f"{function} in {ours[-1] if ours else 'a library'}")
        return out


def on_fake_gpu(module: nn.Module, fake: FakeTensorMode) -> None:
    """Put fakes in the place of all parameters and buffers."""
    for part in module.modules():
        for tensors in (part._parameters, part._buffers):
            for name, value in tensors.items():
                if value is not None:
                    moved = device_copy(value.detach(), fake)
                    tensors[name] = nn.Parameter(moved, value.requires_grad) if isinstance(value, nn.Parameter) else moved


def device_copy(x: Tensor, fake: FakeTensorMode) -> Tensor:
    """A fake of x on the device."""
    inside = fake.from_tensor(x)
    with fake:
        return inside.to("cuda")


def copies(method: nn.Module, batch: Any) -> list[str]:
    """Copies between host and device in one step; raises where the step reads from the device."""
    fake = FakeTensorMode()
    on_fake_gpu(method, fake)
    batch = tree_map(lambda x: device_copy(x, fake), batch)
    with fake, Host() as host:
        method.step(batch)
    return host.copies


@pytest.mark.filterwarnings("ignore:.*CUDA.*:UserWarning")
@pytest.mark.parametrize(("name", "modality"), in_turn(cases()))
def test_no_step_waits(name: str, modality: Any, request: pytest.FixtureRequest) -> None:
    if name in EXPECTED_FAILURES:
        request.applymarker(pytest.mark.xfail(reason=EXPECTED_FAILURES[name], strict=True))
    cfg = model_config(name)
    tags = locate(cfg["model"]["_target_"], name).tags
    case = Case(lambda backbone, views, spec: build_method(cfg, backbone, views, spec), tags, modality)
    method = case.build()
    method.progress = 0.99
    assert not copies(method, case.batch())


class Reads(nn.Module):
    """A step that waits in one way."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.scale = how, nn.Parameter(torch.ones(3))

    def step(self, x: Tensor) -> Any:
        return {"item": lambda: x.sum().item(), "if": lambda: 1 if x.sum() > 0 else 0, "mask": lambda: x[x > 0],
                "nonzero": lambda: x.nonzero(), "list": lambda: self.scale[[0, 2]].sum() * x,
                "tensor": lambda: self.scale * torch.tensor([1.0, 2.0, 3.0], device=x.device), "cpu": lambda: x.cpu(),
                "float": lambda: float(x.sum()), "fine": lambda: (x * self.scale).where(x > 0, 0.0)}[self.how]()


@pytest.mark.parametrize("how", ["item", "if", "mask", "nonzero", "float"])
def test_control_reading_raises(how: str) -> None:
    with pytest.raises((DataDependentOutputException, DynamicOutputShapeException)):
        copies(Reads(how), torch.randn(2, 3))


@pytest.mark.parametrize(("how", "seen"), [("list", True), ("tensor", True), ("cpu", True), ("fine", False)])
def test_control_copies_are_seen(how: str, seen: bool) -> None:
    assert bool(copies(Reads(how), torch.randn(2, 3))) is seen


@pytest.mark.gpu
@pytest.mark.parametrize(("name", "modality"), cases())
def test_no_step_waits_on_a_gpu(name: str, modality: Any, request: pytest.FixtureRequest) -> None:
    if name in EXPECTED_FAILURES:
        request.applymarker(pytest.mark.xfail(reason=EXPECTED_FAILURES[name], strict=True))
    cfg = model_config(name)
    tags = locate(cfg["model"]["_target_"], name).tags
    case = Case(lambda backbone, views, spec: build_method(cfg, backbone, views, spec), tags, modality)
    method, batch = case.build().cuda(), tree_map(lambda x: x.cuda(), case.batch())
    method.progress = 0.99
    method.step(batch).loss.backward()  # libraries choose their kernels here
    torch.cuda.set_sync_debug_mode("error")
    try:
        method.step(batch).loss.backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
