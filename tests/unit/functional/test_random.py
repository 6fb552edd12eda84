"""Counter-based random numbers: right distributions, no dependence on the batch."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ssl_suite.functional.random import Draw, mix, sample_keys

N = 4096


def draw(seed: int = 0, epoch: int = 0, stream: int = 0, n: int = N) -> Draw:
    return Draw(sample_keys(seed, torch.full((n,), epoch), torch.arange(n), stream))


def correlation(a: Tensor, b: Tensor) -> float:
    return torch.corrcoef(torch.stack([a.flatten().double(), b.flatten().double()]))[0, 1].item()


def test_a_sample_gets_the_same_numbers_in_any_batch() -> None:
    keys = sample_keys(3, torch.zeros(N, dtype=torch.long), torch.arange(N))
    chosen = torch.tensor([7, 4000, 5])
    for numbers in (lambda d: d.uniform(3, 2), lambda d: d.normal(5), lambda d: d.integers(9, 4), lambda d: d.permutation(6)):
        assert torch.equal(numbers(Draw(keys))[chosen], numbers(Draw(keys[chosen])))
    assert torch.equal(Draw(keys).rows(chosen).uniform(), Draw(keys).uniform()[chosen])


def test_uniform() -> None:
    u = draw().uniform(16)
    assert u.shape == (N, 16)
    assert u.min() >= 0
    assert u.max() < 1
    assert u.mean().item() == pytest.approx(0.5, abs=0.005)
    assert u.var().item() == pytest.approx(1 / 12, abs=0.001)
    counts = torch.histc(u, 32, 0, 1)
    assert ((counts - u.numel() / 32) ** 2 / (u.numel() / 32)).sum() < 62, "chi square over 31 degrees, one in a thousand"
    scaled = draw().uniform(16, low=-2.0, high=3.0)
    torch.testing.assert_close(scaled, u * 5 - 2)


def test_normal() -> None:
    z = draw().normal(32)
    assert torch.isfinite(z).all()
    assert z.mean().item() == pytest.approx(0, abs=0.01)
    assert z.std().item() == pytest.approx(1, abs=0.01)
    assert (z ** 4).mean().item() == pytest.approx(3, abs=0.1)
    assert (z.abs() > 1.959964).float().mean().item() == pytest.approx(0.05, abs=0.003)


def test_integers_and_chance() -> None:
    i = draw().integers(7, 8)
    assert torch.equal(i.unique(), torch.arange(7))
    assert torch.bincount(i.flatten()).float().div(i.numel()).sub(1 / 7).abs().max() < 0.01
    assert draw().chance(0.3, 8).float().mean().item() == pytest.approx(0.3, abs=0.01)
    assert not draw().chance(0.0, 8).any()
    assert draw().chance(1.0, 8).all()


def test_permutation_is_uniform() -> None:
    order = draw().permutation(4)
    assert torch.equal(order.sort(1).values, torch.arange(4).expand(N, 4))
    codes = (order * torch.tensor([64, 16, 4, 1])).sum(1)
    _, counts = codes.unique(return_counts=True)
    assert len(counts) == 24
    assert ((counts - N / 24) ** 2 / (N / 24)).sum() < 50


@pytest.mark.parametrize("other", [{"seed": 1}, {"epoch": 1}, {"stream": 1}])
def test_seed_epoch_and_stream_each_change_everything(other: dict[str, int]) -> None:
    a, b = draw().uniform(8), draw(**other).uniform(8)
    assert abs(correlation(a, b)) < 0.03
    assert (a == b).float().mean() < 0.001


def test_calls_neighbours_and_copies_are_independent() -> None:
    d = draw()
    first, second = d.uniform(8), d.uniform(8)
    assert abs(correlation(first, second)) < 0.03
    assert abs(correlation(first[:-1], first[1:])) < 0.03, "neighbouring samples"
    assert abs(correlation(first[:, :-1], first[:, 1:])) < 0.03, "neighbouring numbers"
    copies = draw().copies(2)
    assert len(copies) == 2 * N
    both = copies.uniform(8).view(N, 2, 8)
    assert abs(correlation(both[:, 0], both[:, 1])) < 0.03


def test_mix_is_splitmix64() -> None:
    """First outputs of the published generator with seed 0, as unsigned hex."""
    golden = -7046029254386353131
    states = torch.tensor([1, 2, 3]) * golden
    assert [v & (1 << 64) - 1 for v in mix(states).tolist()] == [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]
