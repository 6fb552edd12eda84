"""TS-TCC against the paper's equations in plain loops."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_suite.backbones.series import SeriesConvNet
from ssl_suite.batch import Spec
from ssl_suite.methods.pretraining.tstcc import TSTCC, segment_means, temporal_contrast
from ssl_suite.testing import tiny_batch, tiny_views

SPEC = Spec("series", (2, 40), mean=(0.0, 0.0), std=(1.0, 1.0))


def method(**settings: float) -> TSTCC:
    torch.manual_seed(0)
    backbone = SeriesConvNet(SPEC, width=8, depth=2, num_features=16, norm="none")
    return TSTCC(backbone, tiny_views(SPEC), segments=10, horizon=4, width=32, depth=1, **settings)


def written_out(prediction: Tensor, future: Tensor) -> Tensor:
    """Equations 1 and 2: -1/K of the sum over k of log exp(pred . own) / sum over n of exp(pred . other), mean over rows."""
    rows = []
    for b in range(len(prediction)):
        terms = []
        for k in range(prediction.shape[1]):
            scores = [torch.exp(prediction[b, k] @ future[n, k]) for n in range(len(future))]
            terms.append(torch.log(scores[b] / sum(scores)))
        rows.append(-sum(terms) / len(terms))
    return sum(rows) / len(rows)


def nt_xent(a: Tensor, b: Tensor, temperature: float) -> Tensor:
    """Equation 3."""
    c, n, total = F.normalize(torch.cat([a, b]), dim=1), len(a), 0.0
    for i in range(2 * n):
        others = sum(torch.exp(c[i] @ c[m] / temperature) for m in range(2 * n) if m != i)
        total = total - torch.log(torch.exp(c[i] @ c[(i + n) % (2 * n)] / temperature) / others)
    return total / (2 * n)


def test_temporal_contrast_and_its_gradient() -> None:
    torch.manual_seed(0)
    pairs = [torch.randn(5, 3, 6) for _ in range(2)]
    ours, theirs = ([p.clone().requires_grad_() for p in pairs] for _ in range(2))
    loss, expected = temporal_contrast(*ours), written_out(*theirs)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    loss.backward()
    expected.backward()
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("length", [None, [40, 13, 5, 40, 22, 9]])
def test_a_step_is_equation_four(length: list[int] | None) -> None:
    m = method(temporal=0.9, contextual=0.6, temperature=0.3)
    batch = tiny_batch(SPEC, 6, labels=False)
    if length is not None:
        batch["length"] = torch.tensor(length)
    u = float(m.views.draw(batch, 100).uniform()[0])
    t = math.floor(u * (10 - 4))
    z = [m.steps(x, batch.get("length")) for x in m.views(batch, "weak", "strong")]
    contexts = []
    for view in z:
        tokens = torch.cat([m.token.expand(6, -1, -1), m.embed(view[:, :t + 1])], dim=1)
        contexts.append(m.transformer(tokens)[:, 0])
    temporal = [written_out(m.predict(c).view(6, 4, 16), view[:, t + 1:t + 5])
                for c, view in zip(contexts, reversed(z), strict=True)]
    expected = 0.9 * sum(temporal) + 0.6 * nt_xent(*(m.projector(c) for c in contexts), 0.3)
    assert m.step(batch).loss.item() == pytest.approx(expected.item(), rel=1e-4)


def test_segments_are_adaptive_pooling_of_each_row_cut_to_its_length() -> None:
    torch.manual_seed(0)
    tokens, length = torch.randn(4, 23, 3), torch.tensor([23, 7, 3, 1])
    for s in (1, 5, 16):
        cut = [F.adaptive_avg_pool1d(row[None, :n].transpose(1, 2), s)[0].T for row, n in zip(tokens, length.tolist(), strict=True)]
        torch.testing.assert_close(segment_means(tokens, s, length), torch.stack(cut))
    torch.testing.assert_close(segment_means(tokens, 5), F.adaptive_avg_pool1d(tokens.transpose(1, 2), 5).transpose(1, 2))


def test_the_context_never_sees_what_it_is_to_predict() -> None:
    m = method()
    z, last = torch.randn(3, 10, 16), torch.tensor([4])
    changed = z.clone()
    changed[:, 5:] += 9.0
    torch.testing.assert_close(m.context(z, last), m.context(changed, last))
    changed[:, 4] += 9.0
    assert (m.context(z, last) - m.context(changed, last)).abs().max() > 1e-3


def test_padding_plays_no_part() -> None:
    m = method()
    batch = {**tiny_batch(SPEC, 4, labels=False), "length": torch.tensor([40, 12, 20, 40])}
    loss = m.step(batch).loss
    batch["x"] = torch.where(torch.arange(40) < batch["length"][:, None, None], batch["x"], 99.0)
    torch.testing.assert_close(m.step(batch).loss, loss)


@pytest.mark.parametrize("horizon", [0, 10])
def test_a_horizon_that_leaves_nothing_is_refused(horizon: int) -> None:
    backbone = SeriesConvNet(SPEC, width=8, depth=1, num_features=8)
    with pytest.raises(ValueError, match=f"horizon={horizon}"):
        TSTCC(backbone, tiny_views(SPEC), segments=10, horizon=horizon)
