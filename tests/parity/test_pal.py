"""PAL against the losses that it contains, its closed form against descent, and its graph against all that answers imply."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightly.loss import BarlowTwinsLoss
from torch import Tensor

from ssl_suite.data.relations import from_labels
from ssl_suite.functional.relations import graph_barlow_loss, spectral_map, vic2_loss
from ssl_suite.methods.pretraining.pal import PAL
from ssl_suite.methods.pretraining.simclr import SimCLR
from tests.parity.tiny import Tiny, gradients, pictures, views

GROUPS = torch.tensor([0, 1, 0, 2, 2, 2, 1, 3, 3, 0])


def make(**options: Any) -> PAL:
    torch.manual_seed(0)
    return PAL(Tiny(), views(), hidden_dim=32, projection_dim=8, **options)


def projection(groups: Tensor) -> Tensor:
    """1 / size within a component, 0 across."""
    akin = (groups[:, None] == groups).double()
    return akin / akin.sum(1, keepdim=True)


def test_views_alone_give_simclr() -> None:
    method, twin = make(temperature=0.2), SimCLR(Tiny(), views(), hidden_dim=32, projection_dim=8, temperature=0.2)
    twin.load_state_dict(method.state_dict())
    batch = pictures(6, labels=False)
    losses = [m.step(batch).loss for m in (method, twin)]
    torch.testing.assert_close(*losses)
    for loss in losses:
        loss.backward()
    for name, grad in gradients(method).items():
        torch.testing.assert_close(grad, gradients(twin)[name], atol=1e-6, rtol=1e-4)


def test_vic2_is_variance_covariance_and_invariance() -> None:
    torch.manual_seed(1)
    z = torch.randn(10, 3, dtype=torch.float64, requires_grad=True)
    g, n, d = projection(GROUPS), *z.shape
    apart = ((z[:, None] - z) ** 2).sum(2)
    theirs = ((z.T @ z / n - torch.eye(d)) ** 2).sum() + (g * apart).sum() / n - d + (g ** 2).sum()
    ours = vic2_loss(z, GROUPS)
    torch.testing.assert_close(ours.double(), theirs, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(torch.autograd.grad(ours, z)[0], torch.autograd.grad(theirs, z)[0], rtol=1e-4, atol=1e-5)


def test_labels_are_embedded_as_classes() -> None:
    values, vectors = torch.linalg.eigh(projection(GROUPS))
    z = vectors[:, -4:] * (values[-4:] * len(GROUPS)).sqrt()
    assert vic2_loss(z, GROUPS).item() < 1e-8
    same = GROUPS[:, None] == GROUPS
    distance = torch.cdist(z, z)
    assert distance[same].max() < 1e-5 < 1.0 < distance[~same].min()


def test_two_views_give_the_symmetric_part_of_barlow_twins() -> None:
    torch.manual_seed(1)
    z0, z1 = (torch.nn.functional.batch_norm(torch.randn(12, 4), None, None, training=True) for _ in range(2))
    c = (z0.T @ z1 + z1.T @ z0) / 24
    theirs = ((c.diagonal() - 1) ** 2).sum() + 0.01 * ((c - torch.diag(c.diagonal())) ** 2).sum()
    both, pairs = torch.cat([z0, z1]), torch.arange(12).repeat(2)
    torch.testing.assert_close(graph_barlow_loss(both, pairs, 0.01), theirs, rtol=1e-4, atol=1e-5)
    lightly = BarlowTwinsLoss(0.01)(z0, z0)
    torch.testing.assert_close(graph_barlow_loss(torch.cat([z0, z0]), pairs, 0.01), lightly, rtol=1e-3, atol=1e-4)


def test_no_descent_ends_below_the_closed_form() -> None:
    rng = np.random.default_rng(0)
    features, component = rng.normal(size=(10, 2, 5)), GROUPS.numpy()
    rows, groups = torch.from_numpy(features).flatten(0, 1), GROUPS.repeat_interleave(2)
    exact = vic2_loss(rows @ torch.from_numpy(spectral_map(features, component, 3, ridge=0.0, eps=1e-12)), groups)
    for seed in range(3):
        theta = torch.randn(5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).requires_grad_()
        optimizer = torch.optim.LBFGS([theta], max_iter=300, line_search_fn="strong_wolfe")

        def closure(theta: Tensor = theta, optimizer: Any = optimizer) -> Tensor:
            optimizer.zero_grad()
            loss = vic2_loss(rows @ theta, groups)
            loss.backward()
            return loss

        optimizer.step(closure)
        assert exact.item() <= vic2_loss(rows @ theta, groups).item() + 1e-4
    assert exact.item() == pytest.approx(vic2_loss(rows @ theta, groups).item(), abs=1e-3)


def test_a_file_of_all_labels_gives_the_supervised_loss(tmp_path: Path) -> None:
    batch = pictures(9)
    from_labels(9, np.arange(9), batch["y"].numpy()).save(tmp_path / "labels.csv")
    method = make(relations=str(tmp_path / "labels.csv"), num_samples=9)
    out = method.step({k: v for k, v in batch.items() if k != "y"})
    z = method.projector(method.backbone(torch.cat(method.views(batch, "crop", "crop"))))
    torch.testing.assert_close(out.loss, method.criterion(z, batch["y"].repeat(2)))
    assert out.logs["partners"] == 2.0
    assert not torch.equal(out.loss, make().step(batch).loss)


@pytest.mark.parametrize(("options", "message"), [({"loss": "cosine"}, "'cosine'"), ({"temperature": 0.0}, "temperature=0"),
                                                  ({"relations": "nowhere.csv"}, "ask_pairs")])
def test_bad_values_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        make(**options)
