"""Pseudo-labels on disk, in the data, and in the batches."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from datamodules.images.digits import DigitsDataModule
from ssl_suite.data.pseudo import PseudoLabels, merged_targets

K = 3
LABELS = PseudoLabels(np.array([4, 1, 7]), np.array([2, 0, 1]), np.array([0.9, 0.8, 0.4], np.float32),
                      np.array([True, True, False]), np.ones(3, np.float32))


def digits(path: Path, labels: PseudoLabels, **options: object) -> DigitsDataModule:
    labels.save(path / "labels.npz")
    data = DigitsDataModule(labels_per_class=4, pseudo_labels=str(path / "labels.npz"), batch_size=16, **options)
    data.setup()
    return data


def hidden(count: int) -> np.ndarray:
    """Samples of the digits' training part that have no label."""
    data = DigitsDataModule(labels_per_class=4)
    data.setup()
    return np.setdiff1d(data.parts["train"][1], data.labeled)[:count]


def guesses(index: np.ndarray, **changes: object) -> PseudoLabels:
    ones = np.ones(len(index), np.float32)
    return replace(PseudoLabels(index, np.full(len(index), 7), ones, ones.astype(bool), ones), **changes)


def test_a_file_survives_the_disk(tmp_path: Path) -> None:
    LABELS.save(tmp_path / "a.npz")
    again = PseudoLabels.load(tmp_path / "a.npz")
    assert all(np.array_equal(getattr(again, key), getattr(LABELS, key)) for key in vars(LABELS))
    assert [p.name for p in tmp_path.iterdir()] == ["a.npz"], "a temporary file was left"


def test_only_the_kept_are_believed() -> None:
    assert LABELS.believed(np.arange(9), K).index.tolist() == [4, 1]


@pytest.mark.parametrize(("labels", "message"), [
    (replace(LABELS, kept=np.zeros(3, bool)), "keeps none of its 3"),
    (replace(LABELS, index=np.array([4, 99, 7])), "sample 99 is not in the training part"),
    (replace(LABELS, index=np.array([4, 4, 7])), "twice"),
    (replace(LABELS, target=np.array([3, 0, 1])), "label 3 is none of the 3 classes"),
    (replace(LABELS, target=np.array([-1, 0, 1])), "label -1 is none"),
    (replace(LABELS, target=np.full((3, 2), 0.5)), "probabilities of 3 classes"),
    (replace(LABELS, target=np.full((3, 3), np.nan)), "probabilities of 3 classes"),
    (replace(LABELS, weight=-np.ones(3)), "0 or above"),
    (replace(LABELS, weight=np.ones(2)), "differ in length")])
def test_bad_labels_are_refused(labels: PseudoLabels, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        labels.believed(np.arange(9), K)


def test_bad_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no such file"):
        PseudoLabels.load(tmp_path / "none.npz")
    (tmp_path / "text.npz").write_text("no archive")
    with pytest.raises(ValueError, match="no archive of arrays"):
        PseudoLabels.load(tmp_path / "text.npz")
    np.savez(tmp_path / "half.npz", index=np.arange(3))
    with pytest.raises(ValueError, match="lacks target"):
        PseudoLabels.load(tmp_path / "half.npz")


def test_cross_entropy_against_a_merged_row_is_the_weighted_cross_entropy() -> None:
    weights = np.array([0.5, 2.0], np.float32)
    soft = np.array([[0.2, 0.3, 0.5], [0.6, 0.4, 0.0]], np.float32)
    merged = merged_targets(PseudoLabels(np.array([0, 2]), soft, soft.max(1), np.ones(2, bool), weights), np.array([1, 1, 1]), K)
    logits = torch.randn(3, K, generator=torch.Generator().manual_seed(0))
    log = logits.log_softmax(1)
    first, last = (torch.tensor(soft) * log[[0, 2]]).sum(1)
    expected = torch.stack([-0.5 * first, -log[1, 1], -2.0 * last])
    assert torch.allclose(F.cross_entropy(logits, torch.tensor(merged), reduction="none"), expected)


def test_batches_keep_the_share_of_given_labels(tmp_path: Path) -> None:
    index = hidden(100)
    data = digits(tmp_path, guesses(index), label_share=0.25)
    batches = list(data.train_dataloader())
    assert len(data.labeled) == 140
    assert len(batches) == 100 // 12, "an epoch is one pass over the pseudo-labels"
    for batch in batches:
        pseudo = np.isin(batch["index"].numpy(), index)
        assert (~pseudo).sum() == 4
        assert (batch["y"].numpy()[pseudo] == 7).all(), "a hidden label was shown"
        true = data.parts["train"][0].targets[batch["index"].numpy()[~pseudo]]
        assert np.array_equal(batch["y"].numpy()[~pseudo], true)


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_a_share_may_take_the_whole_batch(tmp_path: Path, share: float) -> None:
    index = hidden(50)
    batch = next(iter(digits(tmp_path, guesses(index), label_share=share).train_dataloader()))
    assert np.isin(batch["index"].numpy(), index).mean() == 1.0 - share


def test_the_semi_supervised_form_leaves_the_rest_unlabelled(tmp_path: Path) -> None:
    data = digits(tmp_path, guesses(hidden(50)), mu=2)
    data.form = "semi"
    batch = next(iter(data.train_dataloader()))[0]
    assert "y" not in batch["unlabeled"]
    assert set(batch["labeled"]["index"].tolist()) <= set(data.labeled.tolist())


def test_a_resumed_order_goes_on(tmp_path: Path) -> None:
    data = digits(tmp_path, guesses(hidden(100)))
    whole = [b["index"] for b in data.train_dataloader()]
    data.seek(3)
    later = [b["index"] for b in data.train_dataloader()]
    assert all(map(torch.equal, later, whole[3:]))
    assert len(later) == len(whole) - 3


def test_soft_labels_reach_the_batch(tmp_path: Path) -> None:
    index = hidden(40)
    batch = next(iter(digits(tmp_path, guesses(index, target=np.full((40, 10), 0.1), weight=np.full(40, 0.5))).train_dataloader()))
    pseudo = torch.from_numpy(np.isin(batch["index"].numpy(), index))
    assert batch["y"].dtype == torch.float32
    assert torch.allclose(batch["y"][pseudo], torch.tensor(0.05))
    assert torch.equal(batch["y"][~pseudo].sum(1), torch.ones(int((~pseudo).sum())))


def test_a_share_outside_is_refused() -> None:
    with pytest.raises(ValueError, match=r"label_share must lie in \[0, 1\]"):
        DigitsDataModule(label_share=1.5)
