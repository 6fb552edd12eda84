"""How often the processes talk in the forward pass of a step; each call of `gather` has one more on the way back."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any
from unittest import mock

import pytest
import torch
import torch.distributed as dist

from tests.configs import case, cases
from tests.dist.pair import WORLD, Pair
from tests.dist.test_gradients import SIZE, part

pytestmark = pytest.mark.dist

CALLS = ("all_gather", "all_gather_into_tensor", "all_reduce", "all_to_all", "all_to_all_single", "broadcast", "reduce_scatter",
         "reduce_scatter_tensor", "all_gather_object", "barrier")
COLLECTIVES = {
    "adamatch": 2, "barlow_twins": 1, "comatch": 3, "dash": 1, "dino": 1, "e2mc": 1, "fixmatch_segmentation": 2, "flexmatch": 1,
    "frame_projections": 3, "freematch": 2, "future_teacher": 3, "ibot": 2, "lejepa": 1, "masked_series": 2, "moco_v2": 1,
    "moco_v3": 1, "msn": 1, "nnclr": 2, "pal": 2, "remixmatch": 1, "segmentation": 1, "simclr": 1, "simmatch": 3, "softmatch": 2,
    "supcon": 2, "ts2vec": 3, "tstcc": 4, "vicreg": 1, "wav2vec2": 3, "wmse": 1,
    "dinov2": 8, "poa": 9, "swav": 6,  # one for each of Sinkhorn's rounds
}
"""Collectives of a step; methods that are not named look at no other process."""


def talks(name: str, modality: Any) -> int:
    """Collectives begun by one step of this process, on its share of the rows."""
    method = case(name, modality).build()
    method.progress = 0.99
    rows = slice(dist.get_rank() * SIZE // WORLD, (dist.get_rank() + 1) * SIZE // WORLD)
    batch = part(case(name, modality).batch(SIZE), rows)
    with ExitStack() as stack, torch.no_grad():
        spies = [stack.enter_context(mock.patch.object(dist, call, wraps=getattr(dist, call))) for call in CALLS]
        method.step(batch)
    return sum(spy.call_count for spy in spies)


@pytest.mark.parametrize(("name", "modality"), {name: (name, modality) for name, modality in cases()}.values())
def test_processes_talk_little(name: str, modality: str, pair: Pair) -> None:
    assert pair(talks, name, modality) == [COLLECTIVES.get(name, 0)] * WORLD
