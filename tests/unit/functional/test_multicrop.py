"""Views of several sizes through one network."""

from __future__ import annotations

import torch
from torch import Tensor

from ssl_suite.functional.multicrop import encode_together


def test_neighbours_of_one_shape_share_a_pass_and_come_back_in_order() -> None:
    seen: list[tuple[torch.Size, Tensor | None]] = []

    def network(x: Tensor, length: Tensor | None) -> Tensor:
        seen.append((x.shape, length))
        return x.flatten(1).mean(1, keepdim=True)

    views = [torch.full((3, 1, side, side), float(i)) for i, side in enumerate((8, 8, 4, 4, 4))]
    out = encode_together(network, views, torch.tensor([8, 7, 6]))
    assert [h.shape for h in out] == [(3, 1)] * 5
    assert [h.unique().item() for h in out] == [0.0, 1.0, 2.0, 3.0, 4.0]
    assert [shape for shape, _ in seen] == [(6, 1, 8, 8), (9, 1, 4, 4)]
    assert seen[0][1] is not None
    assert seen[0][1].tolist() == [8, 7, 6, 8, 7, 6]
    encode_together(network, views[:1])
    assert seen[-1] == (torch.Size([3, 1, 8, 8]), None)
