"""TS2Vec against its authors' code: the same tensors through both losses and, with the same weights, through both encoders.

    python -m pytest tests/parity/test_ts2vec_authors.py --peer ts2vec=FOLDER

Compared with zhihanyue/ts2vec b0088e1, in float64 on the CPU. Without the checkout the tests are skipped.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from ssl_suite.backbones.series import SeriesConvNet
from ssl_suite.batch import Spec
from ssl_suite.methods.pretraining.ts2vec import hierarchical_contrast


@pytest.fixture
def models(checkout: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Makes the checkout's package ``models`` importable, and forgets it afterwards."""
    monkeypatch.syspath_prepend(checkout("ts2vec"))
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    yield
    for name in [n for n in sys.modules if n.split(".")[0] == "models"]:
        del sys.modules[name]


@pytest.mark.usefixtures("models")
@pytest.mark.parametrize(("rows", "steps"), [(4, 17), (8, 64), (1, 9), (3, 2)])
def test_loss_and_gradient(rows: int, steps: int) -> None:
    from models.losses import hierarchical_contrastive_loss

    torch.manual_seed(0)
    z = torch.randn(2 * rows, 6, steps, dtype=torch.float64)
    ours, theirs = z.clone().requires_grad_(), z.clone().requires_grad_()
    loss = hierarchical_contrast(ours, torch.full((2 * rows,), steps))
    expected = hierarchical_contrastive_loss(*theirs.transpose(1, 2).chunk(2))
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    loss.backward()
    expected.backward()
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-6, atol=1e-9)


@pytest.mark.usefixtures("models")
def test_encoder() -> None:
    from models.encoder import TSEncoder

    torch.manual_seed(0)
    ours = SeriesConvNet(Spec("series", (3, 50), mean=(0.0,) * 3, std=(1.0,) * 3), width=8, depth=4, num_features=12, norm="none")
    theirs = TSEncoder(3, 12, hidden_dims=8, depth=4).eval()
    source, target = list(ours.double().state_dict().values()), theirs.double().state_dict()
    assert len(source) == len(target)
    theirs.load_state_dict({name: value.view(target[name].shape) for name, value in zip(target, source, strict=True)})
    x = torch.randn(5, 3, 50, dtype=torch.float64)
    torch.testing.assert_close(ours.maps(x), theirs(x.transpose(1, 2).clone()).transpose(1, 2))
