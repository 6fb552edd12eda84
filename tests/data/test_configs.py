"""Every data config: its arguments exist, its views run, its backbones build."""

from __future__ import annotations

import pytest
import torch
from hydra.utils import instantiate

from ssl_suite.batch import Spec
from ssl_suite.config import validate
from ssl_suite.views import Views
from tests.configs import composed, names

SAMPLES = {"images": (torch.randint(0, 256, (4, 1, 8, 8), dtype=torch.uint8), Spec("images", (1, 8, 8))),
           "speech": (torch.randint(-9000, 9000, (4, 1600), dtype=torch.int16), Spec("speech", (1600,), rate=1600)),
           "series": (torch.randn(4, 2, 32), Spec("series", (2, 32), mean=(0.0, 0.0), std=(1.0, 1.0)))}


@pytest.mark.parametrize("name", names("data"))
def test_config(name: str):
    embedded = name in ("digits", "point_reach", "series", "spoken", "spoken_text")
    cfg = composed(f"data={name}", *([] if embedded else ["data.path=somewhere"]))
    validate({"data": cfg["data"]}, ("data",))
    modality = instantiate(cfg["data"], _convert_="all").modality
    x, spec = SAMPLES[modality]
    views = Views(instantiate(cfg["data"]["views"], _convert_="all")).standardise(spec)
    batch = {"x": x, "index": torch.arange(4), "epoch": torch.zeros(4, dtype=torch.long)}
    if modality != "images":
        batch["length"] = torch.tensor([x.shape[-1], 20, x.shape[-1], 17])
    clean, *augmented, local = views(batch, "clean", "weak", "strong", "crop", "local")
    for view in augmented:
        assert view.shape == x.shape
    assert local.shape[:2] == x.shape[:2]
    for view in (*augmented, local):
        assert torch.isfinite(view).all()
        assert not torch.equal(view, clean)
    more = ["waveform"] if modality == "speech" else ["maps"] if name.startswith("segmentation") else []
    assert set(cfg["backbones"]) == {"features", "tokens", *more}
