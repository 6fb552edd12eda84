"""Memory that was freed serves the next step."""

from __future__ import annotations

import subprocess
import sys

import pytest

CODE = """
import resource, torch
from ssl_suite.memory import keep_freed_memory
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
