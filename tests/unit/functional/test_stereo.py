"""Block matching finds a known shift, trusts no blank wall, and holds on two real pairs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from ssl_suite.functional.stereo import block_costs, block_matching, box


def shifted_pair(disparity: int, height: int = 24, width: int = 48) -> tuple[Tensor, Tensor]:
    """Noise seen twice: what the left picture shows at x the right one shows at x - disparity."""
    scene = torch.rand(3, height, width + disparity, generator=torch.Generator().manual_seed(0))
    return scene[..., :width], scene[..., disparity:]


@pytest.mark.parametrize("disparity", [0, 1, 5, 9])
def test_a_known_shift_is_found(disparity: int) -> None:
    found, confident = block_matching(*shifted_pair(disparity), 10)
    assert confident.float().mean() > 0.5
    assert (found[confident] - disparity).abs().max() < 0.5
    assert not confident[:, : disparity + 3].any(), "the block does not lie inside the right picture"


def test_half_a_pixel() -> None:
    x = torch.arange(64.0)
    scene = lambda offset: (0.5 + 0.4 * torch.sin((x + offset) / 1.7)).expand(1, 20, 64)  # noqa: E731
    found, confident = block_matching(scene(0.0), scene(3.5), 6, uniqueness=0.0)
    assert confident.any()
    assert (found[confident].mean() - 3.5).abs() < 0.15


def test_a_blank_wall_with_noise_is_not_trusted() -> None:
    noise = torch.Generator().manual_seed(0)
    pair = [0.5 + 0.02 * torch.randn(3, 48, 64, generator=noise) for _ in range(2)]
    assert not block_matching(*pair, 13, texture=0.04)[1].any()
    assert not block_matching(torch.zeros(1, 20, 20), torch.zeros(1, 20, 20), 5, texture=0.0)[1].any(), "every match is as good"


def test_costs_are_means_over_the_part_of_a_block_that_both_pictures_have() -> None:
    left, right = shifted_pair(3, 9, 20)
    costs = block_costs(left, right, 4, 5)
    for d, y, x in ((0, 4, 10), (3, 0, 3), (2, 8, 2), (4, 5, 19)):
        rows, columns = range(max(y - 2, 0), min(y + 3, 9)), range(max(x - 2, d), min(x + 3, 20))
        part = torch.stack([(left[:, r, c] - right[:, r, c - d]).abs().mean() for r in rows for c in columns])
        assert torch.isclose(costs[d, y, x], part.mean(), atol=1e-6)
    assert costs[4, :, :4].isinf().all()


def test_box_is_a_mean() -> None:
    x = torch.rand(1, 5, 6, generator=torch.Generator().manual_seed(1))
    assert torch.isclose(box(x, 3)[0, 2, 3], x[0, 1:4, 2:5].mean())
    assert torch.isclose(box(x, 3)[0, 0, 0], x[0, :2, :2].mean())


@pytest.mark.parametrize(("left", "options", "message"), [
    ((3, 20, 30), {"window": 4}, "window=4"), ((3, 20, 30), {"window": 21}, "window=21"), ((20, 30), {}, "must both be"),
    ((3, 20, 31), {}, "must both be"), ((3, 20, 30), {"max_disparity": 30}, "max_disparity=30"),
    ((3, 20, 30), {"texture": -1.0}, "texture=-1.0")])
def test_bad_input_is_named(left: tuple[int, ...], options: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        block_matching(torch.zeros(left), torch.zeros(3, 20, 30), **{"max_disparity": 5, **options})


@pytest.mark.slow
@pytest.mark.parametrize(("name", "largest", "share"), [("motorcycle", 80, 0.88), ("cone", 64, 0.90)])
def test_middlebury(shared_data: Path, name: str, largest: int, share: float) -> None:
    """Measured: 0.904 and 0.921 of the confident pixels lie within one pixel of the truth."""
    if not (shared_data / "stereo.npz").exists():
        pytest.skip("SSL_SUITE_DATA holds no stereo.npz")
    with np.load(shared_data / "stereo.npz", allow_pickle=False) as file:
        left, right = (torch.from_numpy(file[f"{name}_{side}"]).permute(2, 0, 1) / 255.0 for side in ("left", "right"))
        truth = torch.from_numpy(file[f"{name}_disp"])
    found, confident = block_matching(left, right, largest)
    known = truth > 0
    near = (found - truth).abs() <= 1.0
    assert (confident & known).float().mean() > 0.3
    assert near[confident & known].float().mean() > share
    assert near[confident & known].float().mean() > near[known].float().mean() + 0.1, "confidence says nothing"
