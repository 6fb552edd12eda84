"""Every adapter config keeps the contract of `Adapter`, on every kind of normalisation and every modality of its tags."""

from __future__ import annotations

import copy
import inspect
from dataclasses import replace
from functools import cache
from typing import Any

import hydra
import pytest
import torch
from omegaconf import OmegaConf
from torch import Tensor, nn

from ssl_suite.adapter import Adapter
from ssl_suite.config import locate
from ssl_suite.testing import tiny_backbone, tiny_batch, tiny_spec, tiny_views
from tests.configs import CONFIGS, SCRIPTED, names

PRETEXT = ("ttt", "ttt_mae", "ttt_series")
"""They need a model trained with a self-supervised head; tests/unit/methods/test_ttt.py holds the same checks for them."""
AS_SOURCE = {"cotta", "deyo", "eata", "rotta", "sar", "self_learning", "shot", "tent"}
"""Methods whose first prediction, before anything was learned, is the source model's with its stored statistics."""
NO_BATCH_NORM = {"bn_adapt": "no batch norm"}
"""{method: its error on a model without batch norm}."""
SPEC = tiny_spec("images")


@cache
def config(name: str) -> dict[str, Any]:
    cfg = OmegaConf.to_container(OmegaConf.load(CONFIGS / "model" / f"{name}.yaml"))
    assert isinstance(cfg, dict)
    return cfg.get("adapter") or {}


NAMES = [name for name in names("model") if config(name) and name not in PRETEXT and name not in SCRIPTED]


def test_what_adapt_py_runs_is_an_adapter() -> None:
    for name in names("model"):
        if config(name) and name not in SCRIPTED:
            assert issubclass(locate(config(name)["_target_"], name), Adapter), name


def writes_text(name: str) -> bool:
    """Whether an adapter takes scores of frames (B, N, V) in place of classes (B, K)."""
    return locate(config(name)["_target_"], name).tags.target == "text"


class Net(nn.Module):
    """Two normalised layers and a linear head, with odd stored statistics; ``length`` is taken and not needed.

    For an adapter that takes scores of frames, the places of the last maps are the frames.
    """

    def __init__(self, norm: str, frames: bool = False) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        make = {"batch": nn.BatchNorm2d, "group": lambda c: nn.GroupNorm(2, c), "layer": lambda c: nn.GroupNorm(1, c)}[norm]
        self.layers = nn.Sequential(nn.Conv2d(1, 8, 3), make(8), nn.ReLU(), nn.Conv2d(8, 8, 3), make(8), nn.ReLU(),
                                    nn.Dropout(0.5), nn.Flatten())
        width, self.frames = 8 if frames else 8 * 16, frames
        self.last = nn.LayerNorm(width) if norm == "layer" else nn.Identity()
        self.head = nn.Linear(width, 3)
        with torch.no_grad():
            for p in (self.layers[0].weight, self.layers[3].weight, self.head.weight):
                p.copy_(torch.randn(p.shape, generator=generator) * 0.3)
            for p in (self.layers[0].bias, self.layers[3].bias, self.head.bias):
                p.zero_()
            for m in self.modules():
                if isinstance(m, nn.BatchNorm2d):
                    m.running_mean.copy_(torch.randn(8, generator=generator))
                    m.running_var.copy_(torch.rand(8, generator=generator) + 0.5)

    def forward(self, x: Tensor, length: Tensor | None = None) -> Tensor:
        h = self.layers(x)
        return self.head(self.last(h.unflatten(1, (8, 16)).transpose(1, 2) if self.frames else h))


def net(name: str, norm: str = "batch") -> Net:
    return Net(norm, writes_text(name))


def build(name: str, model: nn.Module, spec: Any = SPEC, **overrides: Any) -> Adapter:
    plain = {"frontend": False} if "frontend" in config(name) else {}  # Net has none
    factory = hydra.utils.instantiate({**config(name), **plain, **overrides}, _partial_=True, _convert_="all")
    offers = {"views": tiny_views(spec), "sample_shape": spec.shape}
    takes = inspect.signature(factory.func).parameters
    return factory(model, **{k: v for k, v in offers.items() if k in takes})


def samples(seed: int, n: int = 24) -> Tensor:
    return torch.randn(n, 1, 8, 8, generator=torch.Generator().manual_seed(seed))


def state(module: nn.Module) -> dict[str, Tensor]:
    return {k: v.detach().clone() for k, v in (*module.named_parameters(), *module.named_buffers())}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def learned(adapter: Adapter, batches: int = 3) -> list[Tensor]:
    out = []
    for seed in range(batches):
        logits, report = adapter.predict_and_adapt(samples(seed))
        assert report.verdict == "ok", report.reason
        assert logits.isfinite().all()
        assert not logits.requires_grad
        out.append(logits)
    return out


@pytest.mark.parametrize("norm", ["batch", "group", "layer"])
@pytest.mark.parametrize("name", NAMES)
def test_works_or_names_the_remedy(name: str, norm: str) -> None:
    if norm != "batch" and name in NO_BATCH_NORM:
        with pytest.raises(ValueError, match=NO_BATCH_NORM[name]) as error:
            build(name, net(name, norm))
        assert "model=" in str(error.value)
        return
    learned(build(name, net(name, norm)))


@pytest.mark.parametrize("name", NAMES)
def test_first_prediction(name: str) -> None:
    source, x = net(name).eval(), samples(9)
    adapter = build(name, source, **({"stats": "source"} if "stats" in config(name) else {}))
    with torch.no_grad():
        if name in AS_SOURCE:
            assert torch.equal(adapter.predict(x), source(x))
        else:
            assert adapter.predict(x).shape == source(x).shape
    before = state(adapter)
    assert torch.equal(adapter.predict(x), adapter.predict(x))
    assert same(before, state(adapter)), "predict changed the state"


@pytest.mark.parametrize("name", NAMES)
def test_reset_goes_back_bit_by_bit(name: str) -> None:
    adapter, x = build(name, net(name)), samples(9)
    before, logits = state(adapter), adapter.predict(x)
    first = learned(adapter)
    adapter.reset()
    assert same(before, state(adapter))
    assert torch.equal(adapter.predict(x), logits)
    assert all(torch.equal(a, b) for a, b in zip(first, learned(adapter), strict=True)), "a second run differs"


@pytest.mark.parametrize("name", NAMES)
def test_state_round_trip(name: str, tmp_path: Any) -> None:
    source, x = net(name), samples(9)
    one, two = build(name, source), build(name, source)
    learned(one)
    one.save(tmp_path / "adapter.pt")
    two.load(tmp_path / "adapter.pt")
    assert torch.equal(one.predict(x), two.predict(x))
    for seed in (20, 21):
        (a, first), (b, second) = one.predict_and_adapt(samples(seed)), two.predict_and_adapt(samples(seed))
        assert torch.equal(a, b)
        assert first == second
    assert torch.equal(one.predict(x), two.predict(x))
    two.reset()
    assert torch.equal(two.predict(x), build(name, source).predict(x))


@pytest.mark.parametrize("name", NAMES)
def test_a_bad_batch_changes_nothing(name: str) -> None:
    adapter, bad = build(name, net(name)), samples(5)
    bad[3] = float("nan")
    for _ in range(2):
        learned(adapter, 2)
        before, logits = state(adapter), adapter.predict(samples(9))
        optimizer = copy.deepcopy(adapter.optimizer.state_dict())
        report = adapter.adapt(bad)
        assert report.verdict == "skip"
        assert "finite" in report.reason
        assert same(before, state(adapter))
        assert str(optimizer) == str(adapter.optimizer.state_dict())
        assert torch.equal(adapter.predict(samples(9)), logits)


@pytest.mark.parametrize("name", NAMES)
def test_two_adapters_and_their_source_share_nothing(name: str) -> None:
    source = net(name)
    before, expected = state(source), learned(build(name, source))
    one, two = build(name, source), build(name, source)
    for seed in range(3):
        assert torch.equal(one.predict_and_adapt(samples(seed))[0], expected[seed])
        two.adapt(samples(100 + seed))
    assert same(before, state(source))
    pointers = {t.data_ptr() for t in (*source.parameters(), *source.buffers()) if t.numel()}
    assert not pointers & {t.data_ptr() for t in (*one.parameters(), *one.buffers()) if t.numel()}


@pytest.mark.parametrize("norm", ["batch", "group"])
@pytest.mark.parametrize("name", NAMES)
def test_a_batch_of_one(name: str, norm: str) -> None:
    if norm == "group" and name in NO_BATCH_NORM:
        pytest.skip(f"{name} needs batch norm")
    adapter = build(name, net(name, norm))
    logits, report = adapter.predict_and_adapt(samples(0, 1))
    assert logits.shape == adapter.predict(samples(0, 1)).shape
    assert logits.isfinite().all()
    assert report.verdict == "ok" or (report.reason and report.n_used == 0)


@pytest.mark.parametrize("name", [name for name in NAMES if name not in NO_BATCH_NORM and not writes_text(name)])
def test_group_norm_on_channels_last_maps_behind_frozen_layers(name: str) -> None:
    """torch's CPU kernel crashes the process here unless the gradient of the maps is asked for."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 16, 3, padding=1), nn.GroupNorm(8, 16), nn.Conv2d(16, 16, 3, padding=1), nn.GroupNorm(8, 16),
                          nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 3)).to(memory_format=torch.channels_last)
    adapter = build(name, model, replace(SPEC, shape=(2, 8, 8)))
    x = torch.randn(64, 2, 8, 8).contiguous(memory_format=torch.channels_last)
    if hasattr(adapter, "calibrate"):
        adapter.calibrate([(x, None)])
    assert adapter.adapt(x).verdict == "ok"
    assert not x.requires_grad


@pytest.mark.parametrize("name", NAMES)
def test_constant_samples(name: str) -> None:
    adapter = build(name, net(name))
    logits, report = adapter.predict_and_adapt(torch.zeros(24, 1, 8, 8))
    assert logits.isfinite().all()
    assert report.verdict == "ok", report.reason


class Whole(nn.Module):
    """A backbone of the suite and a head, on samples or on frames."""

    def __init__(self, backbone: Any, frames: bool) -> None:
        super().__init__()
        self.backbone, self.head, self.frames = backbone, nn.Linear(backbone.num_features, 3), frames

    def forward(self, x: Tensor, length: Tensor | None = None) -> Tensor:
        return self.head(self.backbone.tokens(x, length) if self.frames else self.backbone(x, length))


def modalities() -> list[tuple[str, str]]:
    return [(name, modality) for name in NAMES for modality in locate(config(name)["_target_"], name).tags.modalities]


@pytest.mark.parametrize(("name", "modality"), modalities())
def test_modalities(name: str, modality: Any) -> None:
    torch.manual_seed(0)
    spec = tiny_spec(modality)
    adapter = build(name, Whole(tiny_backbone("features" if name in NO_BATCH_NORM else "tokens", spec), writes_text(name)), spec)
    for start in (0, 20):
        batch = tiny_batch(spec, 20, start)
        (x,), length = tiny_views(spec)(batch, "clean"), batch.get("length")
        if length is not None:
            length = length - torch.arange(len(length))
        logits, report = adapter.predict_and_adapt(x, length, batch["index"])
        assert report.verdict == "ok", report.reason
        assert logits.shape == adapter.predict(x, length).shape
        assert logits.shape[::2 if writes_text(name) else 1] == (20, 3)
        assert logits.isfinite().all()
