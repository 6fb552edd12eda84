"""ssl_suite: self-supervision for vision, speech and time series, from pre-training to adaptation at deployment."""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
"""Threads of the CPU that wait for one another sleep. By default they spin, and where other work has one of their cores a small net
takes many times as long. OpenMP reads this when PyTorch is loaded, so it stands before every import."""

from ssl_suite.config import check_stack  # noqa: E402

__version__ = "0.1.0"

check_stack()
