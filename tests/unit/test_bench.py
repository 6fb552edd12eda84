"""Pieces of work that take turns: what is counted, what is timed, and what happens when one fails."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from ssl_suite.config import ConfigError

SCRIPTS = str(Path(__file__).resolve().parents[2] / "scripts")


@pytest.fixture
def bench() -> Iterator[Any]:
    sys.path.insert(0, SCRIPTS)
    import bench

    yield bench
    sys.path.remove(SCRIPTS)


def product(given: Any, watch: Any, side: int) -> Callable[[], float]:
    """A product of matrices after a wait that counts as views."""
    def work() -> float:
        with watch:
            time.sleep(0.05)
        return float((torch.ones(side, side) @ torch.ones(side, side))[0, 0])

    return work


def broken(given: Any, watch: Any) -> Callable[[], Any]:
    raise RuntimeError("no such peer")


def test_work_is_counted_timed_and_watched(bench: Any) -> None:
    pieces = {"small": bench.Piece(partial(product, side=64)), "large": bench.Piece(partial(product, side=256))}
    rows = bench.measure(pieces, bench.Given(0, 0), rounds=2)
    assert rows["small"].gflop == pytest.approx(2 * 64**3 / 1e9)
    assert rows["large"].gflop == pytest.approx(2 * 256**3 / 1e9)
    assert rows["large"].result == 256.0
    assert all(row.ms >= 50.0 and row.views > 0.5 for row in rows.values())


def test_a_piece_that_fails_is_named(bench: Any) -> None:
    with pytest.raises(ConfigError, match="other: the work failed"):
        bench.measure({"other": bench.Piece(broken)}, bench.Given(0, 0), rounds=1)


def test_attention_on_the_cpu_is_counted(bench: Any) -> None:
    q = torch.randn(1, 2, 16, 8, requires_grad=True)
    from benches.turns import counter

    with counter() as flops:
        torch.nn.functional.scaled_dot_product_attention(q, q, q).sum().backward()
    forward = 2 * 2 * (2 * 16 * 16 * 8)
    assert flops.get_total_flops() == forward * 7 // 2  # backward: the scores again, and four products


def test_peers_are_asked_for_by_name_and_folder(bench: Any, tmp_path: Path) -> None:
    assert bench.checkout(f"mae={tmp_path}") == ("mae", str(tmp_path))
    with pytest.raises(argparse.ArgumentTypeError, match="no adapter"):
        bench.checkout(f"nobody={tmp_path}")
    with pytest.raises(argparse.ArgumentTypeError, match="no folder"):
        bench.checkout("mae=/nowhere")
    piece = bench.BENCHES["mae"].pieces["facebookresearch/mae"]
    assert bench.source_of(piece, bench.Given(0, 0)) == ""
