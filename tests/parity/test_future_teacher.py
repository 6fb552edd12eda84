"""FST in a trainer, against its loop written out by hand; and what a trial must not leave behind."""

from __future__ import annotations

import copy
import math
from functools import partial

import lightning as L
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from ssl_suite.batch import Batch
from ssl_suite.methods.self_training.future_teacher import FutureTeacher, parts
from ssl_suite.optim import Constant
from ssl_suite.testing import tiny_backbone, tiny_batch, tiny_spec, tiny_views

SPEC = tiny_spec("images", target="mask")
SGD = partial(torch.optim.SGD, lr=0.1, momentum=0.9)


def make(optimizer=SGD, rampup: float = 0.0, **given) -> FutureTeacher:
    torch.manual_seed(0)
    return FutureTeacher(tiny_backbone("maps", SPEC), tiny_views(SPEC), num_classes=3, optimizer=optimizer, schedule=Constant(),
                         rampup=rampup, **given)


def batches(n: int, b: int = 4, m: int = 8) -> list[Batch]:
    return [{"labeled": tiny_batch(SPEC, b, 20 * i),
             "unlabeled": tiny_batch(SPEC, m, 200 + 20 * i, labels=False)} for i in range(n)]


def fit(method: FutureTeacher, given: list[Batch]) -> L.Trainer:
    trainer = L.Trainer(accelerator="cpu", max_steps=len(given), logger=False, enable_checkpointing=False,
                        enable_progress_bar=False, enable_model_summary=False)
    trainer.fit(method, DataLoader(given, batch_size=None))
    return trainer


def student(method: FutureTeacher) -> dict[str, Tensor]:
    return {name: t for name, t in method.state_dict().items() if not name.startswith("teacher")}


def descend(method: FutureTeacher, batch: Batch, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    method.step(batch).loss.backward()
    optimizer.step()


def by_hand(method: FutureTeacher, given: list[Batch], ahead: int, undo_all: bool = True) -> torch.optim.Optimizer:
    """The official loop: the teacher moves before each trial, after the last, and then comes the real step."""
    method.train()
    optimizer = method.make_optimizer(method.groups())
    for t, batch in enumerate(given):
        m = method.momentum(t, len(given))  # of the step before, for what the trainer did at its end
        if t:
            move(method, m)
        saved, memory = copy.deepcopy(student(method)), copy.deepcopy(optimizer.state_dict())
        for _ in range(ahead):
            descend(method, batch, optimizer)
            move(method, method.momentum(t + 1, len(given)))
        if ahead and undo_all:
            method.load_state_dict(saved, strict=False)
            optimizer.load_state_dict(memory)
        elif ahead:
            method.load_state_dict({name: saved[name] for name, _ in method.named_parameters() if name in saved}, strict=False)
        descend(method, batch, optimizer)
    move(method, method.momentum(len(given), len(given)))
    return optimizer


@torch.no_grad()
def move(method: FutureTeacher, m: float) -> None:
    for teacher, now in ((method.teacher_backbone, method.backbone), (method.teacher_head, method.head)):
        for t, s in zip(teacher.parameters(), now.parameters(), strict=True):
            t.mul_(m).add_((1 - m) * s)
        for t, s in zip(teacher.buffers(), now.buffers(), strict=True):
            t.copy_(s)


def same(one: FutureTeacher, other: FutureTeacher, **tolerance: float) -> None:
    for name, value in one.state_dict().items():
        torch.testing.assert_close(value, other.state_dict()[name], msg=lambda m, n=name: f"{n}: {m}", **tolerance)


@pytest.mark.parametrize("ahead", [0, 1, 3])
@pytest.mark.parametrize("undo", ["all", "weights"])
def test_the_trainer_does_what_the_loop_says(ahead: int, undo: str):
    method, twin, given = make(ahead=ahead, restore=undo), make(ahead=ahead), batches(3)
    trainer = fit(method, given)
    by_hand(twin, given, ahead, undo == "all")
    same(method, twin, rtol=1e-5, atol=1e-6)
    assert trainer.global_step == 3  # trials are not counted


def test_without_trials_it_is_the_mean_teacher_bit_by_bit():
    method, twin, given = make(ahead=0), make(), batches(3)
    fit(method, given)
    twin.train()
    optimizer = twin.make_optimizer(twin.groups())
    for t, batch in enumerate(given):
        descend(twin, batch, optimizer)
        twin.update_teachers(t + 1, 3)
    same(method, twin, rtol=0.0, atol=0.0)


def test_the_student_steps_as_if_it_had_been_handed_the_future_teacher():
    method, given = make(ahead=2), batches(1)
    future, plain = make(ahead=2), make()
    optimizer = future.make_optimizer(future.groups())
    future.train()
    for _ in range(2):
        descend(future, given[0], optimizer)
        move(future, future.momentum(1, 1))
    plain.load_state_dict({name: t for name, t in future.state_dict().items() if name.startswith("teacher")}, strict=False)
    plain.train()
    descend(plain, given[0], plain.make_optimizer(plain.groups()))
    fit(method, given)
    for name, value in student(method).items():
        torch.testing.assert_close(value, student(plain)[name])
    untaught = make()
    untaught.train()
    descend(untaught, given[0], untaught.make_optimizer(untaught.groups()))
    assert not torch.equal(untaught.head.weight, plain.head.weight)  # the control: another teacher, another step


@pytest.mark.parametrize("way", ["deep", "wide"])
@pytest.mark.parametrize("optimizer", [SGD, partial(torch.optim.AdamW, lr=0.01)])
def test_a_trial_leaves_nothing_behind_but_the_teacher(way: str, optimizer):
    method, (first, batch) = make(optimizer, way=way, ahead=3), batches(2)
    method.manual_backward = lambda loss: loss.backward()
    method.train()
    torch_optimizer = method.make_optimizer(method.groups())
    descend(method, first, torch_optimizer)
    before, memory = copy.deepcopy(method.state_dict()), copy.deepcopy(torch_optimizer.state_dict())
    method.look_ahead([batch] * 3, torch_optimizer, 1, 10)
    for name, value in method.state_dict().items():
        if not name.startswith("teacher"):
            assert torch.equal(value, before[name]), name
    assert not torch.equal(method.teacher_head.weight, before["teacher_head.weight"])
    after = torch_optimizer.state_dict()
    assert after["param_groups"] == memory["param_groups"]
    for p, state in memory["state"].items():
        for k, v in state.items():
            assert v is None or torch.equal(torch.as_tensor(v), torch.as_tensor(after["state"][p][k]))


def test_wide_moves_the_teacher_towards_the_mean_of_parallel_students():
    method, (batch,) = make(way="wide", ahead=3), batches(1, 4, 8)
    method.manual_backward = lambda loss: loss.backward()
    method.train()
    start, ends = copy.deepcopy(method), []
    _, *later = parts(batch, 4)
    assert [len(p["unlabeled"]["x"]) for p in later] == [2, 2, 2]
    for part in later:
        one = copy.deepcopy(start)
        descend(one, part, one.make_optimizer(one.groups()))
        ends.append(one.head.weight.detach())
    method.look_ahead(later, method.make_optimizer(method.groups()), 3, 10)
    m = method.momentum(3, 10)
    torch.testing.assert_close(method.teacher_head.weight, m * start.teacher_head.weight + (1 - m) * torch.stack(ends).mean(0))


def test_the_teacher_guesses_in_evaluation_mode_and_gets_no_gradient():
    method = make()
    method.train()
    assert not method.teacher_backbone.training
    method.step(batches(1)[0]).loss.backward()
    assert all(p.grad is None for p in [*method.teacher_backbone.parameters(), *method.teacher_head.parameters()])
    assert method.encoder is method.teacher_backbone


def test_the_teacher_is_heeded_little_at_first():
    method, (batch,) = make(rampup=0.4), batches(1)
    for progress, share in ((0.0, math.exp(-5.0)), (0.2, math.exp(-1.25)), (0.4, 1.0), (0.9, 1.0)):
        method.progress = progress
        out = method.step(batch)
        torch.testing.assert_close(out.loss, (out.logs["loss_sup"] + share * out.logs["loss_unsup"]) / 2)


def test_labelled_and_strong_rows_share_a_forward():
    method, (batch,) = make(), batches(1)
    method.train()
    sizes: list[int] = []
    method.backbone.register_forward_hook(lambda module, given, out: sizes.append(len(given[0])))
    maps = method.backbone.maps
    method.backbone.maps = lambda x: sizes.append(len(x)) or maps(x)
    method.step(batch)
    assert sizes == [12]


def test_masks_of_another_model_are_refused():
    method, (batch,) = make(), batches(1)
    batch["unlabeled"]["pseudo"] = torch.zeros(8, 8, 8, dtype=torch.uint8)
    with pytest.raises(ValueError, match=r"data\.pseudo_masks=null"):
        method.step(batch)


def test_mistakes_are_told():
    with pytest.raises(ValueError, match=r"model\.ahead=-1"):
        make(ahead=-1)
    with pytest.raises(ValueError, match=r"model\.way='broad'"):
        make(way="broad")
    with pytest.raises(ValueError, match=r"3 parts, but it has 4 labeled samples; change data\.batch_size"):
        parts(batches(1)[0], 3)
