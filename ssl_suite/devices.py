"""What the machine is good at."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping

import torch

TRIM_THRESHOLD, MMAP_MAX = -1, -4
"""Names of glibc's ``malloc.h``."""


def native_precision(accelerator: str) -> str:
    """Lightning's name of the precision that the device of an accelerator is good at.

    ``bf16-mixed`` where it has instructions of its own for products in bfloat16, ``32-true`` elsewhere.
    """
    able: Mapping[str, object] = {}
    if accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available():
        able = {"bf16": torch.cuda.is_bf16_supported(including_emulation=False)}
    elif accelerator == "cpu" or (accelerator == "auto" and not torch.backends.mps.is_available()):
        able = torch.cpu.get_capabilities()
    return "bf16-mixed" if any(able.get(name) for name in ("bf16", "avx512_bf16", "amx_bf16")) else "32-true"


def keep_freed_memory() -> bool:
    """Let the process keep memory that was freed for its next step, in place of giving large pieces back to the system.

    The system hands pages out one by one and cleared, so that every large tensor costs twice (``docs/benchmarks.md``, SimCLR).
    The process then holds the most that it ever needed until it ends.

    Returns:
        True where it took effect; False without glibc (macOS, Windows, Alpine).
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    return bool(mallopt(MMAP_MAX, 0) and mallopt(TRIM_THRESHOLD, -1))
