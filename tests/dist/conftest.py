"""One pair of processes for all tests of this folder."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.dist.pair import Pair


@pytest.fixture(scope="session")
def pair() -> Iterator[Pair]:
    processes = Pair()
    yield processes
    processes.close()
