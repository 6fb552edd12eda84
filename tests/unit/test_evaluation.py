"""Features in order, the same subset each time, raw references without padding."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from datamodules.images.digits import DigitsDataModule
from ssl_suite.batch import Spec
from ssl_suite.evaluation import classes, features, judge, raw_features, spectrum_scores, subset, view_scores


@pytest.fixture(scope="module")
def data() -> DigitsDataModule:
    module = DigitsDataModule(batch_size=100)
    module.setup()
    return module


def test_subset_is_fixed_spread_and_without_repeats() -> None:
    indices = np.arange(1000) * 2
    some = subset(indices, 100)
    assert np.array_equal(some, subset(indices, 100))
    assert len(np.unique(some)) == 100
    assert set(some) <= set(indices)
    assert some.max() > 1500
    assert np.array_equal(subset(indices, None), indices)
    assert np.array_equal(subset(indices, 5000), indices)


def test_features_come_in_the_order_of_the_classes(data: DigitsDataModule) -> None:
    source, indices = data.parts["test"]
    found = features(lambda batch: batch["x"].float().flatten(1), data, "test")
    assert found.dtype == np.float32
    assert np.array_equal(found, source.fetch(indices)["x"].flatten(1).float().numpy())
    assert np.array_equal(classes(data, "test"), source.targets[indices])
    some = features(lambda batch: batch["x"].float().flatten(1), data, "test", samples=50)
    assert np.array_equal(some, found[subset(np.arange(len(found)), 50)])


def test_judge_tells_a_good_embedding_from_noise(data: DigitsDataModule) -> None:
    good = judge(raw_features(data.spec), data, seed=0, samples=300)
    noise = judge(lambda batch: torch.randn(len(batch["x"]), 16, generator=torch.Generator().manual_seed(0)), data, seed=0,
                  samples=300)
    assert good["knn"] > 0.85
    assert good["probe_full"] > good["probe_3shot"] > good["probe_1shot"] > noise["probe_full"]
    assert noise["knn"] < 0.3


def test_raw_series_are_padded_to_the_longest() -> None:
    spec = Spec("series", (2, 9), mean=(0.0, 0.0), std=(1.0, 1.0))
    x = torch.ones(3, 2, 7)
    raw = raw_features(spec)({"x": x, "length": torch.tensor([7, 7, 5])})
    assert raw.shape == (3, 18)
    assert raw[0].sum() == 14


def test_raw_speech_ignores_padding() -> None:
    spec = Spec("speech", (4000,), rate=8000)
    x = torch.randn(1, 2400, generator=torch.Generator().manual_seed(0))
    embed = raw_features(spec)
    alone = embed({"x": x, "length": torch.tensor([2400])})
    padded = embed({"x": torch.nn.functional.pad(x, (0, 1600)), "length": torch.tensor([2400])})
    torch.testing.assert_close(alone, padded, rtol=1e-4, atol=1e-4)
    assert torch.isfinite(embed({"x": x})).all()


def test_a_spectrum_without_a_line_has_no_decay() -> None:
    h = np.random.default_rng(0).normal(size=(300, 64)).astype(np.float32)
    assert spectrum_scores(h).keys() == {"rankme", "alpha_req"}
    assert spectrum_scores(h[:, :8]).keys() == {"rankme"}
    assert spectrum_scores(np.ones_like(h))["rankme"] == pytest.approx(1.0, abs=1e-3)


def test_views_are_grouped_by_sample(data: DigitsDataModule) -> None:
    still = view_scores(lambda batch: batch["x"].float().flatten(1), data, objects=60, count=4)
    assert still["alignment"] == 0.0
    assert still["lidar"] > 10.0

    def mixed(batch: dict) -> torch.Tensor:
        return torch.randn(len(batch["x"]), 16, generator=torch.Generator().manual_seed(int(batch["epoch"][0])))

    assert view_scores(mixed, data, objects=60, count=4)["alignment"] > 1.0
