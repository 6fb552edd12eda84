"""The monitor tells of guesses that nobody believes and of a model that only ever says one class."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from ssl_suite.callbacks import PseudoLabelMonitor
from ssl_suite.method import Method
from ssl_suite.methods.self_training.fixmatch import FixMatch
from ssl_suite.methods.self_training.policies import FixedThreshold
from ssl_suite.testing import tiny_backbone, tiny_batch, tiny_spec, tiny_views

SPEC = tiny_spec("images")


class Guesser(nn.Module):
    """As much of a method as the monitor asks."""

    def __init__(self, scores: Tensor) -> None:
        super().__init__()
        self.scores, self.norm = scores, nn.BatchNorm1d(1)

    def logits(self, batch: Any) -> Tensor:
        assert not self.training
        return self.scores


def epoch(method: nn.Module, believed: list[float], patience: int = 3, monitor: Any = None) -> None:
    monitor = monitor or PseudoLabelMonitor(patience)
    batch = {"labeled": tiny_batch(SPEC, 2), "unlabeled": tiny_batch(SPEC, 4)}
    for value in believed:
        monitor.on_train_batch_end(None, method, {"logs": {"mask_ratio": torch.tensor(value)}}, batch, 0)
    monitor.on_train_epoch_end(None, method)


def test_a_model_that_learns_from_its_guesses_is_left_alone() -> None:
    method = Guesser(torch.eye(4)).train()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        epoch(method, [0.0, 0.0, 0.5, 0.0, 0.0])
        monitor: Any = PseudoLabelMonitor()
        monitor.on_train_batch_end(None, method, {"logs": {}}, tiny_batch(SPEC, 4), 0)
        monitor.on_train_epoch_end(None, method)  # no unlabelled batches
    assert method.training


def test_guesses_that_are_never_believed_are_told_across_epochs() -> None:
    monitor = PseudoLabelMonitor(4)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        epoch(Guesser(torch.eye(4)), [0.5, 0.0, 0.0], monitor=monitor)
    with pytest.warns(UserWarning, match=r"believed for the last 4 steps.*policy"):
        epoch(Guesser(torch.eye(4)), [0.0, 0.0], monitor=monitor)


def test_they_are_told_again_after_as_many_steps_not_every_epoch() -> None:
    monitor = PseudoLabelMonitor(4)
    with pytest.warns(UserWarning, match="believed for the last 5 steps"):
        epoch(Guesser(torch.eye(4)), [0.0] * 5, monitor=monitor)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        epoch(Guesser(torch.eye(4)), [0.0] * 3, monitor=monitor)
    with pytest.warns(UserWarning, match="believed for the last 4 steps"):
        epoch(Guesser(torch.eye(4)), [0.0], monitor=monitor)


def test_silence_is_counted_on_after_a_resume(tmp_path: Path) -> None:
    def train(epochs: int, **kwargs: Any) -> L.Trainer:
        torch.manual_seed(0)
        method = FixMatch(tiny_backbone("features", SPEC), tiny_views(SPEC), num_classes=SPEC.num_classes,
                          policy=FixedThreshold(1.0))
        method.head.weight.data.zero_()
        batch = {"labeled": tiny_batch(SPEC, 3), "unlabeled": tiny_batch(SPEC, 4)}
        trainer = L.Trainer(max_epochs=epochs, accelerator="cpu", logger=False, enable_progress_bar=False,
                            enable_model_summary=False, enable_checkpointing=False, callbacks=[PseudoLabelMonitor(6)])
        trainer.fit(method, DataLoader([batch] * 4, batch_size=None), weights_only=False, **kwargs)
        return trainer

    train(1).save_checkpoint(tmp_path / "last.ckpt")
    with pytest.warns(UserWarning, match="believed for the last 8 steps"):
        train(2, ckpt_path=tmp_path / "last.ckpt")


def test_the_default_can_fire_in_the_short_runs_of_digits() -> None:
    with pytest.warns(UserWarning, match="believed for the last 150 steps"):
        epoch(Guesser(torch.eye(4)), [0.0] * 150, monitor=PseudoLabelMonitor())


def test_a_constant_teacher_is_told() -> None:
    with pytest.warns(UserWarning, match=r"all 4 guesses .* class 2.*constant"):
        epoch(Guesser(torch.tensor([[0.0, 0.1, 0.2]]).expand(4, 3)), [1.0])


def test_a_real_method_whose_head_has_died_is_told() -> None:
    method: Method = FixMatch(tiny_backbone("features", SPEC), tiny_views(SPEC), num_classes=SPEC.num_classes)
    method.ema_head.bias.data[1] = 100.0
    with pytest.warns(UserWarning, match="are of class 1"):
        epoch(method, [1.0])
    assert method.training
