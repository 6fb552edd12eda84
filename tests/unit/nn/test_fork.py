"""Forked networks: what is shared moves together, what is not stays apart, in copies of the whole too."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from ssl_suite.backbones.images import ConvNet, PixelEncoder
from ssl_suite.batch import Spec
from ssl_suite.nn.fork import fork, lower

SPEC = Spec("images", (1, 12, 12))


class Pair(nn.Module):
    def __init__(self, backbone, shared):
        super().__init__()
        self.one, self.two = backbone, fork(backbone, shared)


def common(pair: nn.Module) -> int:
    return len({id(p) for p in pair.one.parameters()} & {id(p) for p in pair.two.parameters()})


@pytest.mark.parametrize("copied", [False, True])
@pytest.mark.parametrize(("shared", "tensors"), [("none", 0), (1, 2), (2, 4), (3, 6), ("all", 10)])
def test_the_lower_stages_are_the_same_parameters(shared, tensors, copied):
    pair = Pair(PixelEncoder(SPEC, layers=3, width=4, num_features=8), shared)
    pair = copy.deepcopy(pair) if copied else pair
    assert common(pair) == tensors
    x = torch.randn(2, 1, 12, 12)
    assert torch.equal(pair.one(x), pair.two(x))
    with torch.no_grad():
        pair.one.convs[0][0].weight.zero_()
    assert torch.equal(pair.one(x), pair.two(x)) == (shared != "none")


def test_statistics_of_shared_stages_are_shared():
    pair = Pair(ConvNet(SPEC, widths=(8, 8), num_features=4), 1)
    pair.two.train()(torch.randn(4, 1, 12, 12))
    assert pair.one.convs[0][1].running_mean is pair.two.convs[0][1].running_mean
    assert int(pair.one.convs[0][1].num_batches_tracked) == 1
    assert int(pair.one.convs[1][1].num_batches_tracked) == 0


@pytest.mark.parametrize("shared", [0, 4, -1, "some"])
def test_a_fork_outside_of_the_stages_is_refused(shared):
    with pytest.raises(ValueError, match="shared"):
        fork(PixelEncoder(SPEC, layers=3, width=4, num_features=8), shared)


def test_lower_stages_are_the_first_ones_none_or_the_whole():
    net = PixelEncoder(SPEC, layers=3, width=4, num_features=8)
    parameters = [p for stage in lower(net, 2) for p in stage.parameters()]
    assert [id(p) for p in parameters] == [id(p) for p in net.convs[:2].parameters()]
    assert lower(net, "none") == []
    assert lower(net, "all") == [net]
    assert lower(nn.Linear(2, 2), "none") == []
    with pytest.raises(ValueError, match="0 stages of Linear"):
        lower(nn.Linear(2, 2), 1)
