"""Fixtures shared by all tests."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]


def pytest_addoption(parser: pytest.Parser) -> None:
    """``--peer NAME=FOLDER``: checkouts of authors' code for tests/parity/test_authors.py."""
    parser.addoption("--peer", action="append", default=[], metavar="NAME=FOLDER", help="a checkout of authors' code")


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """Tiny tensors gain nothing from threads, and a fixed count keeps sums in one order."""
    torch.set_num_threads(1)


@pytest.fixture
def shared_data() -> Path:
    """A folder of real data sets named by the environment; tests that need it are skipped without it."""
    folder = os.environ.get("SSL_SUITE_DATA")
    if not folder or not Path(folder).is_dir():
        pytest.skip("SSL_SUITE_DATA names no folder of data sets")
    return Path(folder)
