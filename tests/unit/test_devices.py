"""What the machine is good at: bfloat16, and keeping freed memory for the next step."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from ssl_suite.devices import native_precision

CODE = """
import resource, torch
from ssl_suite.devices import keep_freed_memory
kept = keep_freed_memory() if {keep} else None
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(1 << 24)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
print(kept, sorted(faults() for _ in range(31))[15])
"""


def page_faults(keep: bool) -> tuple[str, int]:
    """What the function returned, and the page faults of a tensor of 64 MB where such were freed before: the median of many."""
    code = CODE.format(keep=keep)
    kept, faults = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    return kept, int(faults)


def test_the_next_tensor_takes_the_place_of_the_last() -> None:
    kept, faults = page_faults(keep=True)
    if kept == "False":
        pytest.skip("the C library is not glibc")
    assert faults < 100
    assert page_faults(keep=False)[1] > 10 * max(faults, 1)


@pytest.mark.parametrize(("able", "precision"), [({"avx512_bf16": True}, "bf16-mixed"), ({"amx_bf16": True}, "bf16-mixed"),
                                                 ({"bf16": True}, "bf16-mixed"), ({"avx512_bf16": False, "avx2": True}, "32-true")])
def test_a_cpu_with_instructions_for_bfloat16(able: dict[str, bool], precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: able)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert native_precision("cpu") == native_precision("auto") == precision
    assert native_precision("mps") == "32-true"
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert native_precision("auto") == "32-true"  # a Mac, whose GPU is taken


@pytest.mark.parametrize("good", [True, False])
def test_a_gpu_that_does_not_emulate_bfloat16(good: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": not good})
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: good and not including_emulation)
    assert native_precision("gpu") == native_precision("auto") == ("bf16-mixed" if good else "32-true")
    assert native_precision("cpu") == ("32-true" if good else "bf16-mixed")
