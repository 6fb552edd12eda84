"""The monitor sees features and embeddings die, and keeps quiet about healthy ones."""

from __future__ import annotations

import copy
import warnings
from functools import partial
from types import SimpleNamespace
from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor, nn

from ssl_suite.batch import StepOutput
from ssl_suite.callbacks import CollapseMonitor
from ssl_suite.method import Method
from ssl_suite.methods.pretraining.simsiam import SimSiam
from ssl_suite.nn.heads import mlp
from tests.configs import built


class Logged:
    """As much of a method as the monitor looks at."""

    def __init__(self, projector: nn.Module | None = None, joint_embedding: bool = True, target: str = "none") -> None:
        self.tags, self.logs = SimpleNamespace(joint_embedding=joint_embedding, target=target), dict[str, float]()
        if projector is not None:
            self.projector = projector

    def log_dict(self, values: dict[str, float], **_: Any) -> None:
        self.logs = values


def watched(method: Logged, *batches: Tensor) -> dict[str, float]:
    monitor: Any = CollapseMonitor()
    for batch in batches:
        monitor.on_train_batch_end(None, method, {"features": batch}, None, 0)
    monitor.on_train_epoch_end(None, method)
    return method.logs


H = torch.randn(400, 16, generator=torch.Generator().manual_seed(0))


def test_maps_of_pictures_with_masks_are_not_judged() -> None:
    assert watched(Logged(target="mask"), torch.ones(400, 16)) == {}
    with pytest.warns(UserWarning, match="features have collapsed"):
        assert watched(Logged(target="class"), torch.ones(400, 16))


def test_healthy_features_raise_no_warning() -> None:
    torch.manual_seed(0)
    projector = mlp(16, 32, 8)
    before = copy.deepcopy(projector.state_dict())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        logs = watched(Logged(projector), H[:200], H[200:])
        assert watched(Logged(), H).keys() == {"collapse/std", "collapse/rankme"}
        assert watched(Logged(nn.Linear(3, 3), joint_embedding=False), H).keys() == {"collapse/std", "collapse/rankme"}
    assert logs["collapse/std"] == pytest.approx(1.0, abs=0.05)
    assert logs["collapse/rankme"] == pytest.approx(16.0, rel=0.05)
    assert 5.0 < logs["collapse/embedding_rankme"] <= 8.01
    assert logs["collapse/embedding_std"] > 0.2
    assert projector.training
    assert all(torch.equal(value, before[name]) for name, value in projector.state_dict().items()), "looking changed the projector"


def test_constant_features_raise_one() -> None:
    with pytest.warns(UserWarning, match="features have collapsed"):
        watched(Logged(), torch.ones(100, 16) + 1e-4 * H[:100])


def test_an_embedding_in_few_directions_raises_one() -> None:
    with pytest.warns(UserWarning, match=r"embedding has collapsed: of the features' 1\d\.\d directions it keeps 2\.\d"):
        watched(Logged(nn.Sequential(nn.Linear(16, 2), nn.Linear(2, 64))), H)


def test_an_embedding_that_shrinks_raises_one() -> None:
    small = nn.Linear(16, 16, bias=False)
    nn.init.eye_(small.weight).data.mul_(0.05)
    with pytest.warns(UserWarning, match=r"embedding has collapsed: it spreads 0\.050 times as far"):
        logs = watched(Logged(small), H)
    assert logs["collapse/embedding_rankme"] == pytest.approx(16.0, rel=0.05), "the rank alone does not see it"


class Unstopped(SimSiam):
    """SimSiam without the stopped gradient."""

    def step(self, batch: dict[str, Any]) -> StepOutput:
        h0, h1 = (self.backbone(x) for x in self.views(batch, *self.tags.views))
        z0, z1 = self.projector(h0), self.projector(h1)
        loss = (self.criterion(self.predictor(z0), z1) + self.criterion(self.predictor(z1), z0)) / 2.0
        return StepOutput(loss, features=h0.detach())


def trained(name: str, *overrides: str, kind: type[Method] | None = None) -> dict[str, Tensor]:
    """What the monitor logs of the last of ten epochs on digits."""
    method, data = built(f"model={name}", "data=digits", *overrides)
    if kind is not None:
        method.step = partial(kind.step, method)
    trainer = L.Trainer(max_epochs=10, accelerator="cpu", callbacks=[CollapseMonitor()], logger=False, enable_checkpointing=False,
                        enable_progress_bar=False, enable_model_summary=False)
    trainer.fit(method, datamodule=data)
    return trainer.callback_metrics


@pytest.mark.slow
@pytest.mark.parametrize(("figure", "healthy", "broken", "kind"), [
    ("rankme", ["simsiam"], [], Unstopped),
    ("rankme", ["vicreg", "optimizer=lars", "optimizer.lr=1", "optimizer.weight_decay=1e-6"], ["model.variance=0"], None),
    ("std", ["vicreg"], ["model.variance=0"], None)])
def test_both_collapse_arms_are_caught_within_ten_epochs(figure: str, healthy: list[str], broken: list[str],
                                                         kind: type[Method] | None) -> None:
    """RankMe sees what is lost; with AdamW VICReg shrinks in all directions alike, which the spread tells."""
    with warnings.catch_warnings():
        warnings.filterwarnings("error", ".*collapsed.*")
        alive = trained(*healthy)
    with pytest.warns(UserWarning, match="the embedding has collapsed"):
        collapsed = trained(*healthy, *broken, kind=kind)
    assert collapsed[f"collapse/embedding_{figure}"] < 0.2 * alive[f"collapse/embedding_{figure}"]
    assert collapsed["collapse/std"] > 0.5, "the features alone do not tell"
