"""What every data module must pass."""

from __future__ import annotations

from typing import Any

import torch

from ssl_suite.batch import Spec
from ssl_suite.functional.segmentation import VOID


def check_datamodule(data: Any, semi: bool = True) -> None:
    """Check a data module: description, keys, order, and that the unlabelled form hides the labels.

    Args:
        data: a data module that was not set up yet.
        semi: check the labelled-and-unlabelled form too.

    Raises:
        AssertionError: a check failed; the message says which and how.
    """
    data.prepare_data()
    data.setup("fit")
    data.setup("fit")
    spec = data.spec
    assert isinstance(spec, Spec), "setup() must leave a Spec in .spec"
    assert Spec.from_dict(spec.to_dict()) == spec, "the spec does not survive being saved"
    data.form = "unlabeled"
    batch = next(iter(data.train_dataloader()))
    assert {"x", "index", "epoch"} <= batch.keys(), f"a batch lacks keys: {sorted(batch)}"
    assert "y" not in batch, "the unlabelled form shows labels"
    assert batch["x"].shape[1:-1] == torch.Size(spec.shape[:-1]), f"{tuple(batch['x'].shape)} does not match {spec.shape}"
    assert batch["x"].shape[-1] <= spec.shape[-1], "a sample is longer than the spec says"
    epochs = [torch.cat([b["index"] for b in data.train_dataloader()]) for _ in range(2)]
    assert torch.equal(*epochs), "the order of one epoch differs between two looks"
    assert len(epochs[0].unique()) == len(epochs[0]) or data.steps_per_epoch, "a sample stands twice in an epoch"
    data.seek(1)
    later = torch.cat([b["index"] for b in data.train_dataloader()])
    assert torch.equal(later, epochs[0][len(epochs[0]) - len(later):]), "seek(1) does not start at the second batch"
    data.seek(0)
    if data.parts["train"][0].targets is not None or spec.masks:
        data.form = "labeled"
        labeled = next(iter(data.train_dataloader()))
        y = labeled["y"][labeled["y"] != VOID] if spec.masks else labeled["y"]
        assert int(y.max()) < max(spec.num_classes, len(spec.vocabulary)), "a label lies outside the classes"
        assert not spec.masks or labeled["y"].shape == (len(labeled["x"]), *spec.shape[1:]), "a mask does not fit its picture"
        if semi:
            data.form = "semi"
            both = next(iter(data.train_dataloader()))[0]
            assert set(both) == {"labeled", "unlabeled"}, f"a semi-supervised batch has keys {sorted(both)}"
            assert "y" in both["labeled"], "the labelled half has no labels"
            assert "y" not in both["unlabeled"], "the unlabelled half shows labels"
