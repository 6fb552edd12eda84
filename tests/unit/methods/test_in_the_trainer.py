"""What depends on where the run stands: generations, ramps, schedules, frozen modules; with a real Trainer."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn
from torch.utils.data import DataLoader

from ssl_suite.batch import Spec
from ssl_suite.method import Method
from ssl_suite.methods.distillation.self_distillation import SelfDistillation
from ssl_suite.methods.self_training.comatch import CoMatch
from ssl_suite.methods.self_training.fixmatch import FixMatch
from ssl_suite.methods.self_training.future_teacher import FutureTeacher
from ssl_suite.methods.self_training.mixmatch import MixMatch
from ssl_suite.methods.self_training.policies import Dash, FlexMatch, FreeMatch, SoftMatch
from ssl_suite.methods.self_training.pseudo_label import PseudoLabel
from ssl_suite.methods.self_training.remixmatch import ReMixMatch
from ssl_suite.methods.self_training.simmatch import SimMatch
from ssl_suite.methods.supervised.classifier import Classifier
from ssl_suite.optim import Constant
from ssl_suite.testing import tiny_backbone, tiny_batch, tiny_spec, tiny_views
from ssl_suite.views import Views


class Net(nn.Module):
    num_features = 8

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.BatchNorm1d(8), nn.ReLU())

    def forward(self, x: Tensor, length: Tensor | None = None) -> Tensor:
        return self.layers(x)


def rows(n: int, first: int = 0) -> dict[str, Tensor]:
    x = torch.randint(0, 256, (n, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(first))
    return {"x": x, "index": torch.arange(first, first + n), "epoch": torch.zeros(n, dtype=torch.int64),
            "y": torch.arange(n) % 3}


VIEWS = {"weak": [], "strong": []}
ADAM = {"optimizer": partial(torch.optim.AdamW, lr=0.05), "schedule": Constant()}


def loader(batches: list) -> DataLoader:
    return DataLoader(batches, batch_size=None)


def fit(method: L.LightningModule, batches: list, epochs: int, callbacks: tuple = (), **kwargs) -> L.Trainer:
    resume = kwargs.pop("ckpt_path", None)
    trainer = L.Trainer(max_epochs=epochs, accelerator="cpu", logger=False, enable_progress_bar=False,
                        enable_model_summary=False, enable_checkpointing=False, callbacks=list(callbacks), **kwargs)
    trainer.fit(method, loader(batches), ckpt_path=resume, weights_only=False if resume else None)
    return trainer


class Watch(Callback):
    """Generation, optimizer steps since its state was cleared, and loss, at every batch."""

    def __init__(self) -> None:
        self.seen: list[tuple[int, int]] = []
        self.losses: list[float] = []

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx) -> None:
        state = trainer.optimizers[0].state.get(module.head.weight, {"step": 0})
        self.seen.append((int(module.generation), int(state["step"])))
        self.losses.append(float(outputs["loss"]))


class Save(Callback):
    def __init__(self, path: Path, step: int) -> None:
        self.path, self.step = path, step

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx) -> None:
        if trainer.global_step == self.step:
            trainer.save_checkpoint(self.path)


def distiller() -> SelfDistillation:
    torch.manual_seed(0)
    return SelfDistillation(Net(), Views(VIEWS), num_classes=3, xi=1.3, generations=2, **ADAM)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_generations_follow_each_other_with_a_fresh_optimizer(accumulate):
    watch = Watch()
    fit(distiller(), [rows(6, 10 * i) for i in range(4)], 2, (watch,), accumulate_grad_batches=accumulate)
    steps = watch.seen[accumulate - 1 :: accumulate]
    assert steps == [(g, k) for g in range(2) for k in range(1, 4 // accumulate + 1)]


@pytest.mark.parametrize("step", [3, 4, 6])
def test_resumed_run_equals_the_uninterrupted_one(tmp_path, step):
    batches, whole, part = [rows(6)] * 4, Watch(), Watch()
    first = distiller()
    fit(first, batches, 2, (whole, Save(tmp_path / "at.ckpt", step)))
    second = distiller()
    fit(second, batches, 2, (part,), ckpt_path=tmp_path / "at.ckpt")
    assert part.losses == whole.losses[step:]
    assert part.seen == whole.seen[step:]
    for name, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[name]), name


def test_weights_loaded_after_building_are_the_ones_to_go_back_to():
    method = SelfDistillation(Net(), Views(VIEWS), num_classes=3, restart="same", **ADAM)
    loaded = {name: value + 1.0 if value.is_floating_point() else value for name, value in Net().state_dict().items()}
    method.backbone.load_state_dict(loaded)
    fit(method, [rows(6)] * 3, 1)  # the border lies at the second of three steps: ceil(3 / 2)
    for name, value in method.initial["backbone"].state_dict().items():
        assert torch.equal(value, loaded[name])


def test_ramp_follows_the_run():
    class Progress(Callback):
        def __init__(self) -> None:
            self.seen: list[float] = []

        def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx) -> None:
            self.seen.append(module.progress)

    watch = Progress()
    method = PseudoLabel(Net(), Views(VIEWS), num_classes=3, **ADAM)
    fit(method, [{"labeled": rows(6), "unlabeled": rows(9, 50)}] * 2, 2, (watch,))
    assert watch.seen == [0.0, 0.25, 0.5, 0.75]


def test_fixmatch_teacher_moves_once_per_optimizer_step():
    torch.manual_seed(0)
    method = FixMatch(Net(), Views(VIEWS), num_classes=3, ema_decay=0.5, ema_warmup=False, **ADAM)
    before = method.ema_head.weight.clone()
    fit(method, [{"labeled": rows(6), "unlabeled": rows(9, 50)}] * 2, 1, accumulate_grad_batches=2)
    torch.testing.assert_close(method.ema_head.weight, 0.5 * before + 0.5 * method.head.weight)


class Losses(Callback):
    def __init__(self) -> None:
        self.seen: list[float] = []

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx) -> None:
        self.seen.append(float(outputs["loss"]))


def with_policy(policy, *given, **options) -> FixMatch:
    return FixMatch(*given, policy=policy(), **options)


MIXED = {"mixmatch": MixMatch, "remixmatch": partial(ReMixMatch, spec=Spec("images", (1, 8, 8), ("a", "b", "c"))),
         "comatch": partial(CoMatch, queue_size=40), "simmatch": SimMatch,
         "freematch": partial(with_policy, partial(FreeMatch, 3)),
         "flexmatch": partial(with_policy, partial(FlexMatch, 3, 100, 0.4)),
         "softmatch": partial(with_policy, partial(SoftMatch, 3)), "dash": partial(with_policy, partial(Dash, warmup_steps=2))}


@pytest.mark.parametrize("name", MIXED)
def test_what_is_remembered_survives_a_resume(tmp_path, name):
    def make() -> Method:
        torch.manual_seed(0)
        return MIXED[name](Net(), Views(VIEWS), num_classes=3, **ADAM)

    batches = [{"labeled": rows(6, 10 * i), "unlabeled": rows(9, 50 + 10 * i)} for i in range(4)]
    first, second, whole, part = make(), make(), Losses(), Losses()
    fit(first, batches, 2, (whole, Save(tmp_path / "at.ckpt", 4)))
    fit(second, batches, 2, (part,), ckpt_path=tmp_path / "at.ckpt")
    assert part.seen == whole.seen[4:]
    assert len(set(whole.seen)) == 8
    for key, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[key]), key


@pytest.mark.parametrize("way", ["deep", "wide"])
def test_a_teacher_of_the_future_survives_a_resume(tmp_path, way):
    spec = tiny_spec("images", target="mask")

    def make() -> FutureTeacher:
        torch.manual_seed(0)
        return FutureTeacher(tiny_backbone("maps", spec), tiny_views(spec), num_classes=3, ahead=1, way=way, ema_decay=0.5, **ADAM)

    batches = [{"labeled": tiny_batch(spec, 4, 20 * i), "unlabeled": tiny_batch(spec, 8, 200 + 20 * i, labels=False)}
               for i in range(2)]
    first, second, whole, part = make(), make(), Losses(), Losses()
    ends = [fit(first, batches, 2, (whole, Save(tmp_path / "at.ckpt", 2))),
            fit(second, batches, 2, (part,), ckpt_path=tmp_path / "at.ckpt")]
    assert part.seen == whole.seen[2:]
    for key, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[key]), key
    assert not torch.equal(first.teacher_head.weight, first.head.weight)
    memories = [end.optimizers[0].state_dict()["state"] for end in ends]
    for key, state in memories[0].items():
        assert all(torch.equal(value, memories[1][key][name]) for name, value in state.items())


def test_probe_learns_without_touching_its_backbone():
    torch.manual_seed(0)
    method = Classifier(Net(), Views(VIEWS), num_classes=3, frozen=True, **ADAM)
    before = {name: value.clone() for name, value in method.backbone.state_dict().items()}
    batch = rows(12)
    start = method.step(batch).loss.item()
    fit(method, [batch] * 10, 3)
    assert method.step(batch).loss.item() < 0.8 * start
    assert all(torch.equal(before[name], value) for name, value in method.backbone.state_dict().items())


@pytest.mark.parametrize(("how", "largest"), [("norm", 1e-3), ("value", 1e-5)])
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_a_fused_optimizer_gets_clipped_gradients(precision: str, how: str, largest: float) -> None:
    norms, values = [], []

    class Watch(Callback):
        def on_before_zero_grad(self, trainer, pl_module, optimizer) -> None:
            gradients = [p.grad for p in pl_module.parameters() if p.grad is not None]
            if gradients:
                norms.append(float(torch.cat([g.flatten() for g in gradients]).norm()))
                values.append(max(float(g.abs().max()) for g in gradients))

    optimizer = partial(torch.optim.AdamW, lr=0.05, fused=True)
    method = Classifier(Net(), Views(VIEWS), num_classes=3, optimizer=optimizer, schedule=Constant())
    fit(method, [rows(8)], 3, (Watch(),), precision=precision, gradient_clip_val=largest, gradient_clip_algorithm=how)
    assert (max(norms) if how == "norm" else max(values)) == pytest.approx(largest, rel=1e-3)
