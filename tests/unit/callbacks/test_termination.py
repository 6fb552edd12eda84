"""A run that is ended again and again leaves as many checkpoints as one that is not."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch import Tensor, nn
from torch.utils.data import DataLoader

from ssl_suite.callbacks import ResumeState, termination
from ssl_suite.callbacks.termination import Termination
from ssl_suite.io.checkpoints import AtomicCheckpointIO


class Line(L.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(4, 1)

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        return self.net(batch).square().mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Ask(Termination):
    """Is asked to end at one step."""

    def __init__(self, step: int) -> None:
        super().__init__()
        self.step = step

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
        self.asked = trainer.global_step == self.step
        super().on_train_batch_end(trainer, *args)


def stopped(folder: Path, steps: tuple[int, ...]) -> list[str]:
    """Checkpoints after starts that were ended at one step after another; every second step one is due."""
    newest = None
    for step in steps:
        keeper = ModelCheckpoint(folder, "step={step:02d}", "step", mode="max", save_top_k=2, every_n_train_steps=2,
                                 auto_insert_metric_name=False, enable_version_counter=False)
        trainer = L.Trainer(accelerator="cpu", max_epochs=1, callbacks=[ResumeState(), Ask(step), keeper], logger=False,
                            plugins=[AtomicCheckpointIO()], enable_progress_bar=False, enable_model_summary=False)
        with suppress(SIGTERMException):
            trainer.fit(Line(), DataLoader(torch.randn(64, 4), batch_size=4), ckpt_path=newest)
        newest = max(folder.glob("*.ckpt"))
        assert torch.load(newest, weights_only=True)["global_step"] == step, "the run did not save where it was ended"
    return sorted(path.name for path in folder.glob("*.ckpt"))


@pytest.mark.filterwarnings("ignore")
def test_what_is_saved_at_the_end_counts_among_the_newest(tmp_path: Path) -> None:
    assert stopped(tmp_path, (3, 5, 9)) == ["step=08.ckpt", "step=09.ckpt"]


@pytest.mark.filterwarnings("ignore")
def test_control_without_counting_they_pile_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def beside(trainer: L.Trainer, keeper: ModelCheckpoint) -> None:
        trainer.save_checkpoint(keeper.format_checkpoint_name({"epoch": 0, "step": trainer.global_step}))

    monkeypatch.setattr(termination, "keep", beside)
    assert len(stopped(tmp_path, (3, 5, 9))) > 2
