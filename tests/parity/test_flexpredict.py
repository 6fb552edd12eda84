"""FlexPredict: without noise it is I-JEPA; the noise is that of the paper and passes the context's matrix."""

from __future__ import annotations

from math import sqrt
from pathlib import Path

import lightning as L
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.datasets import load_sample_images
from torch import Tensor, nn

from ssl_suite.batch import Batch
from ssl_suite.methods.pretraining.flexpredict import NOISE_STREAM, FlexPredict
from ssl_suite.methods.pretraining.ijepa import IJEPA
from ssl_suite.testing import tiny_batch
from tests.configs import built
from tests.parity.test_ijepa import make
from tests.parity.test_mae import PICTURES
from tests.parity.tiny import gradients

BATCH = tiny_batch(PICTURES, 8)


def test_without_noise_it_is_ijepa_to_the_last_bit() -> None:
    plain, flexible = make().train(), make(kind=FlexPredict, sigma=0.0).train()
    losses = [method.step(BATCH).loss for method in (plain, flexible)]
    assert torch.equal(*losses)
    for loss in losses:
        loss.backward()
    for name, grad in gradients(plain).items():
        assert torch.equal(grad, gradients(flexible)[name]), name


def test_evaluation_knows_no_noise() -> None:
    plain, flexible = make().eval(), make(kind=FlexPredict).eval()
    assert torch.equal(plain.step(BATCH).loss, flexible.step(BATCH).loss)
    assert not torch.equal(plain.step(BATCH).loss, flexible.train().step(BATCH).loss), "the control"


def test_queries_have_the_mean_and_covariance_of_the_paper() -> None:
    method = make(kind=FlexPredict, sigma=0.5).train()
    batch = {"index": torch.arange(4000), "epoch": torch.zeros(4000, dtype=torch.int64)}
    queries = method.queries(batch, torch.zeros(4000, 2, 3, 32))
    a = method.predictor.embed.weight
    samples = queries[:, 1, 2].detach()
    torch.testing.assert_close(samples.mean(0), method.predictor.mask_token.detach(), rtol=0, atol=0.01)
    torch.testing.assert_close(samples.T.cov(), 0.25 * (a @ a.T).detach(), rtol=0, atol=0.1 * (a @ a.T).diagonal().mean().item())
    one, other = queries[:, 0, 0] - queries.mean(0)[0, 0], queries[:, 0, 1] - queries.mean(0)[0, 1]
    assert (one * other).mean().abs() < 0.05 * one.square().mean(), "tokens have noise of their own"
    assert not torch.equal(method.queries({**batch, "epoch": batch["epoch"] + 1}, torch.zeros(4000, 2, 3, 32)), queries)


def test_noise_and_context_pass_one_matrix() -> None:
    method = make(kind=FlexPredict).train()
    assert isinstance(method, IJEPA)
    assert method.state_dict().keys() == make().state_dict().keys(), "no parameter is added"
    loss = method.queries(BATCH, torch.zeros(8, 3, 4, 32)).square().sum()
    (through_noise,) = torch.autograd.grad(loss, method.predictor.embed.weight)
    assert through_noise.abs().sum() > 0
    with torch.no_grad():
        method.predictor.embed.weight.zero_()
    queries = method.queries(BATCH, torch.zeros(8, 3, 4, 32))
    assert torch.equal(queries, method.predictor.mask_token.expand_as(queries)), "without the context's matrix no noise"


def test_a_negative_sigma_is_named() -> None:
    with pytest.raises(ValueError, match=r"sigma.*-0\.1"):
        make(kind=FlexPredict, sigma=-0.1)


class Untied(FlexPredict):
    """The control: the noise has a matrix of its own."""

    def queries(self, batch: Batch, positions: Tensor) -> Tensor:
        noise = self.views.draw(batch, NOISE_STREAM).normal(*positions.shape[1:3], self.free.shape[1])
        return IJEPA.queries(self, batch, positions) + F.linear(self.sigma * noise, self.free)


def remaining(kind: type[FlexPredict], sigma: float, path: Path) -> float:
    """Frobenius norm of the noise's matrix after 1400 steps on pieces of photographs, as a share of what it was."""
    method, data = built("model=flexpredict", "data=image_arrays", f"data.path={path}", "data.batch_size=96",
                         "backbones.tokens.width=48", "backbones.tokens.depth=2", f"model.sigma={sigma}", "model.view=weak",
                         "model.predictor_width=32", "model.predictor_depth=1", "model.targets=1", "model.target_scale=[0.25,0.25]",
                         "model.target_aspect=[1,1]", "model.max_context=0.5625", "optimizer.lr=1.5e-3", "schedule=constant")
    method.__class__ = kind
    matrix = nn.init.kaiming_uniform_(method.predictor.embed.weight, a=sqrt(5))
    if kind is Untied:
        method.free = matrix = nn.Parameter(matrix.detach().clone())
    first = matrix.norm().item()
    trainer = L.Trainer(max_steps=1400, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
                        enable_model_summary=False, limit_val_batches=0)
    trainer.fit(method, datamodule=data)
    return matrix.norm().item() / first


@pytest.mark.slow
def test_a_matrix_of_its_own_would_switch_the_noise_off(tmp_path: Path) -> None:
    """Section 3 of the paper: tied to the context's matrix, the noise stays; with its own it is learned away."""
    rng, photographs = np.random.default_rng(0), [photograph[::2, ::2] for photograph in load_sample_images().images]
    corners = rng.integers(0, [len(photographs[0]) - 16, len(photographs[0][0]) - 16], (2000, 2))
    pieces = np.stack([photographs[i % 2][row:row + 16, col:col + 16] for i, (row, col) in enumerate(corners)])
    np.savez(tmp_path / "pieces.npz", images=pieces, labels=np.arange(2000) % 2)
    untied, tied, without = [remaining(kind, sigma, tmp_path / "pieces.npz")
                             for kind, sigma in ((Untied, 0.25), (FlexPredict, 0.25), (FlexPredict, 0.0))]
    assert untied < 0.6
    assert tied > 0.75
    assert without > 0.95, "the control: without noise nothing pulls the matrix down"
