"""What is drawn at the end of a run with masks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.image import imread
from torch import Tensor

from ssl_suite.batch import Batch
from ssl_suite.callbacks.pictures import Pictures
from ssl_suite.method import Method
from ssl_suite.run import build_data, load_run
from tests.runs import masks, run


def shares(picture: np.ndarray) -> list[float]:
    """Share of the pixels that have the colour of each class."""
    return [float((np.abs(picture[..., :3] - colormaps["tab10"].resampled(3)(c)[:3]).max(2) < 0.02).mean()) for c in range(3)]


def test_a_run_draws_pictures_true_masks_and_predictions(tmp_path: Path) -> None:
    data = ("data=segmentation_arrays", f"data.path={masks(tmp_path)}", "data.labels=4")
    folder = run(tmp_path / "run", "model=segmentation", *data)
    assert (folder / "pictures" / "segmentation.png").is_file()
    loaded = load_run(folder)

    class Constant(type(loaded.method)):  # type: ignore[misc]
        """Says the last class of every pixel."""

        def logits(self: Method, batch: Batch) -> Tensor:
            return torch.eye(3)[2].view(1, 3, 1, 1).expand(len(batch["y"]), 3, *batch["y"].shape[1:])

    loaded.method.__class__ = Constant
    Pictures(str(tmp_path)).draw(loaded.method, build_data(loaded.config, loaded.method.tags))
    drawn = imread(tmp_path / "pictures" / "segmentation.png")
    above = drawn[: int(0.9 * len(drawn))]  # the legend stands below
    third = above.shape[1] // 3
    truth, predicted = shares(above[:, third : 2 * third]), shares(above[:, 2 * third :])
    assert min(truth) > 0.05
    assert predicted[2] > 0.3
    assert max(predicted[:2]) < 0.01
