"""SimMTM against the paper's equations in plain loops."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_suite.backbones.series import SeriesConvNet
from ssl_suite.batch import Spec
from ssl_suite.functional.random import Draw
from ssl_suite.methods.pretraining.masked_series import MaskedSeries, geometric_mask
from ssl_suite.testing import tiny_batch
from ssl_suite.views import Views

SPEC = Spec("series", (2, 24), mean=(0.0, 0.0), std=(1.0, 1.0))


def method(**settings: float) -> MaskedSeries:
    torch.manual_seed(0)
    backbone = SeriesConvNet(SPEC, width=8, depth=2, num_features=6, norm="none")
    return MaskedSeries(backbone, Views().standardise(SPEC), copies=2, hidden_dim=16, projection_dim=8, **settings).eval()


def written_out(m: MaskedSeries, x: Tensor, versions: Tensor, length: list[int], tau: float) -> Tensor:
    """Equations 1 to 6, row by row; each row is cut to its length before it is encoded."""
    rows, b = len(versions), len(x)
    maps = [m.backbone.maps(versions[r:r + 1, :, :length[r % b]])[0] for r in range(rows)]
    s = F.normalize(m.projector(torch.stack([z.amax(1) for z in maps])), dim=1)
    similarity = s @ s.T / tau
    agree = rebuild = count = 0.0
    for r in range(rows):
        others = [j for j in range(rows) if j != r]
        total = torch.logsumexp(similarity[r, others], 0)
        agree = agree - sum(similarity[r, j] - total for j in others if j % b == r % b) / rows
        if r >= b:
            continue
        weights = {j: (similarity[r, j] - total).exp() for j in others}
        for t in range(length[r]):
            have = [j for j in others if t < length[j % b]]
            z = sum(weights[j] * maps[j][:, t] for j in have) / sum(weights[j] for j in have)
            rebuilt = m.decoder.weight[:, :, 0] @ z + m.decoder.bias
            rebuild, count = rebuild + (rebuilt - x[r, :, t]).square().mean(), count + 1
    losses = torch.stack([agree, rebuild / count])
    return (losses / (2 * m.sigma ** 2) + torch.log(1 + m.sigma ** 2)).sum()


@pytest.mark.parametrize("lengths", [None, [24, 7, 15, 24]])
def test_loss_and_gradient(lengths: list[int] | None) -> None:
    ours, theirs = method(temperature=0.3), method(temperature=0.3)
    for m in (ours, theirs):
        m.sigma.data = torch.tensor([0.8, 1.3])
    batch = tiny_batch(SPEC, 4, labels=False)
    if lengths is not None:
        batch["length"] = torch.tensor(lengths)
    (x,) = ours.views(batch, "clean")
    masks = [geometric_mask(ours.views.draw(batch, 100 + i), 2, 24, 0.5, 3.0) for i in range(2)]
    versions = torch.cat([x, *(x.masked_fill(mask, 0.0) for mask in masks)])
    loss, expected = ours.step(batch).loss, written_out(theirs, x, versions, lengths or [24] * 4, 0.3)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-4)
    loss.backward()
    expected.backward()
    for (name, p), q in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-3, atol=1e-5, msg=name)


@pytest.mark.parametrize(("ratio", "span"), [(0.5, 3.0), (0.25, 5.0), (0.75, 4.0)])
def test_masks_have_the_ratio_and_geometric_stretches(ratio: float, span: float) -> None:
    mask = geometric_mask(Draw(torch.arange(200) * 31 + 5), 3, 400, ratio, span)
    assert mask.shape == (200, 3, 400)
    assert mask.float().mean().item() == pytest.approx(ratio, abs=0.02)
    begins = mask[:, :, 1:-1] & ~mask[:, :, :-2]
    assert (mask[:, :, 1:-1].sum() / begins.sum()).item() == pytest.approx(span, rel=0.06)
    ends_at_once = (begins & ~mask[:, :, 2:]).sum() / begins.sum()
    assert ends_at_once.item() == pytest.approx(1 / span, rel=0.06), "the shortest stretch is the likeliest"
    assert not torch.equal(mask[:, 0], mask[:, 1]), "each channel has a mask of its own"


def test_a_series_is_never_rebuilt_from_itself() -> None:
    m = method()
    batch = tiny_batch(SPEC, 3, labels=False)
    seen = []
    m.decoder.register_forward_pre_hook(lambda _, given: seen.append(given[0].detach()))
    maps = m.backbone.maps
    m.backbone.maps = lambda x, length: torch.cat([maps(x[:3], length[:3]) + 1e6, maps(x[3:], length[3:])])
    m.backbone.pool = lambda z, length: torch.eye(9, 6)
    m.projector = torch.nn.Identity()
    m.temperature = 0.01
    m.step(batch)
    assert (seen[0][0] > 1e4).all(), "the other originals count"
    m.backbone.maps = lambda x, length: torch.cat([maps(x[:1], length[:1]) + 1e6, maps(x[1:], length[1:])])
    m.step(batch)
    assert (seen[1][0] < 1e3).all(), "its own vectors do not"


def test_padding_plays_no_part() -> None:
    m = method()
    batch = {**tiny_batch(SPEC, 4, labels=False), "length": torch.tensor([24, 12, 20, 24])}
    loss = m.step(batch).loss
    batch["x"] = torch.where(torch.arange(24) < batch["length"][:, None, None], batch["x"], 99.0)
    torch.testing.assert_close(m.step(batch).loss, loss)


@pytest.mark.parametrize("settings", [{"mask_ratio": 0.0}, {"mask_ratio": 0.8}, {"span": 1.5}])
def test_numbers_out_of_range_are_refused(settings: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(settings))):
        method(**settings)
