"""PAD against its update written out: Adam on copies of the newest transition, then the action by the new encoder."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ssl_suite.backbones.images import PixelEncoder
from ssl_suite.batch import Spec
from ssl_suite.deploy import Deployed
from ssl_suite.functional.random import Draw, sample_keys
from ssl_suite.methods.adaptation.pad import PADAdapter, PolicyAdaptation
from ssl_suite.views import Views

SPEC = Spec("images", (1, 8, 8), actions=2)
LR, N, SEED = 0.05, 3, 5


class Noise:
    def __call__(self, x: Tensor, draw: Draw, length: Tensor | None) -> Tensor:
        return x + 0.5 * draw.normal(*x.shape[1:])


def policy() -> PolicyAdaptation:
    torch.manual_seed(0)
    return PolicyAdaptation(PixelEncoder(SPEC, layers=2, width=4, num_features=8), Views(), hidden=8).eval()


def encode(w: dict[str, Tensor], x: Tensor) -> Tensor:
    h = torch.conv2d(x, w["backbone.convs.0.0.weight"], w["backbone.convs.0.0.bias"], stride=2).relu()
    h = torch.conv2d(h, w["backbone.convs.1.0.weight"], w["backbone.convs.1.0.bias"]).relu().flatten(1)
    h = h @ w["backbone.project.1.weight"].T + w["backbone.project.1.bias"]
    h = (h - h.mean(1, keepdim=True)) / (h.var(1, unbiased=False, keepdim=True) + 1e-5).sqrt()
    return (h * w["backbone.project.2.weight"] + w["backbone.project.2.bias"]).tanh()


def head(w: dict[str, Tensor], name: str, h: Tensor) -> Tensor:
    for layer in (0, 2, 4):
        h = h @ w[f"{name}.{layer}.weight"].T + w[f"{name}.{layer}.bias"]
        h = h.relu() if layer < 4 else h
    return h


@pytest.mark.parametrize("replay", [1, 4])
def test_three_steps_equal_the_computation_by_hand(replay: int):
    adapter = PADAdapter(Deployed(policy()), views=Views({"weak": [Noise()]}), replay=replay, copies=N, lr=LR, min_action=0.0,
                         trial=0, seed=SEED)
    w = {k: v.detach().clone() for k, v in policy().named_parameters()}
    learning = [v.requires_grad_() for k, v in w.items() if not k.startswith("policy")]
    m, v = ([torch.zeros_like(p) for p in learning] for _ in range(2))
    sights = torch.randn(4, 1, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    memory: list[tuple[Tensor, Tensor, Tensor]] = []
    expected = torch.zeros(1, 2)
    for t, x in enumerate(sights):
        action, report = adapter.predict_and_adapt(x)
        if t:
            memory = [*memory, (sights[t - 1], expected, x)][-replay:]
            key = (torch.zeros(1, dtype=torch.int64), torch.tensor([t]))
            one, two, pick = (Draw(sample_keys(SEED, *key, stream)).copies(N) for stream in (0, 1, 101))
            rows = [memory[i] for i in pick.integers(len(memory)).tolist()]
            before, done, after = (torch.cat(column) for column in zip(*rows, strict=True))
            h = torch.cat([encode(w, before + 0.5 * one.normal(1, 8, 8)), encode(w, after + 0.5 * two.normal(1, 8, 8))], 1)
            loss = (head(w, "pretext.head", h) - done).square().mean()
            assert report.loss == pytest.approx(loss.item(), rel=1e-4)
            for i, (p, g) in enumerate(zip(learning, torch.autograd.grad(loss, learning), strict=True)):
                m[i], v[i] = 0.9 * m[i] + 0.1 * g, 0.999 * v[i] + 0.001 * g * g
                with torch.no_grad():
                    p -= LR * (m[i] / (1 - 0.9 ** t)) / ((v[i] / (1 - 0.999 ** t)).sqrt() + 1e-8)
        expected = head(w, "policy", encode(w, x)).tanh().detach()
        torch.testing.assert_close(action, expected, rtol=1e-3, atol=1e-4)
