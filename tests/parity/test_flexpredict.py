"""FlexPredict: without noise it is I-JEPA; the noise is that of the paper and passes the context's matrix."""

from __future__ import annotations

import pytest
import torch

from ssl_suite.methods.pretraining.flexpredict import FlexPredict
from ssl_suite.methods.pretraining.ijepa import IJEPA
from ssl_suite.testing import tiny_batch
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
