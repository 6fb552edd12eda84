"""Fixtures shared by all tests."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]


def pytest_addoption(parser: pytest.Parser) -> None:
    """``--peer NAME=FOLDER``: checkouts of authors' code, for `checkout`."""
    parser.addoption("--peer", action="append", default=[], metavar="NAME=FOLDER", help="a checkout of authors' code")


@pytest.fixture
def checkout(request: pytest.FixtureRequest) -> Callable[[str], Path]:
    """The folder given for a name by ``--peer``; without one the test is skipped, and a folder that is not there fails it."""
    given = dict(entry.split("=", 1) for entry in request.config.getoption("--peer"))

    def folder(name: str) -> Path:
        if name not in given:
            pytest.skip(f"no checkout of the authors' code: give --peer {name}=FOLDER")
        if not Path(given[name]).is_dir():
            pytest.fail(f"--peer {name}={given[name]}: there is no such folder")
        return Path(given[name]).resolve()

    return folder


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
