"""What every method must pass, as separate checks over one `Case`."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ssl_suite.batch import Batch, Modality, Spec, Tags
from ssl_suite.method import Method
from ssl_suite.testing.tiny import tiny_backbone, tiny_batch, tiny_spec, tiny_views
from ssl_suite.views import Views

Make = Callable[[nn.Module, Views, Spec], Method]


@dataclass
class Case:
    """A method on one modality.

    Attributes:
        make: builds the method from a backbone, views and the data's spec.
        tags: its tags.
        modality: one of the tags' modalities.
    """

    make: Make
    tags: Tags
    modality: Modality

    def spec(self, odd: bool = False) -> Spec:
        return tiny_spec(self.modality, odd, self.tags.target)

    def build(self, odd: bool = False, seed: int = 0) -> Method:
        torch.manual_seed(seed)
        spec = self.spec(odd)
        return self.make(tiny_backbone(self.tags.backbone, spec), tiny_views(spec), spec).train()

    def batch(self, size: int = 9, odd: bool = False, start: int = 0, poison: bool = False) -> Batch:
        spec = self.spec(odd)
        labeled = self.tags.batch == "labeled"
        if self.tags.batch == "semi":
            unlabeled = tiny_batch(spec, 2 * size, start + 100, labels=poison)
            return {"labeled": tiny_batch(spec, size, start), "unlabeled": unlabeled}
        return tiny_batch(spec, size, start, labels=labeled or poison)


def optimise(case: Case, method: Method, steps: int, accumulate: int = 1, lr: float = 3e-3) -> list[float]:
    """Train by hand for some optimizer steps on fresh batches; returns the losses."""
    optimizer = torch.optim.Adam([p for p in method.parameters() if p.requires_grad], lr=lr)
    losses = []
    for step in range(steps):
        optimizer.zero_grad()
        for i in range(accumulate):
            batch = case.batch(start=9 * ((step * accumulate + i) % 8))
            loss = method.step(batch).loss / accumulate
            loss.backward()
            losses.append(loss.item() * accumulate)
        optimizer.step()
        if method.teachers:
            method.update_teachers(step + 1, steps)
    return losses


def finite_loss_with_gradient(case: Case) -> None:
    """The loss is a finite scalar, and backward works."""
    out = case.build().step(case.batch())
    assert out.loss.ndim == 0, f"the loss has shape {tuple(out.loss.shape)}, not ()"
    assert torch.isfinite(out.loss), f"the loss is {out.loss.item()}"
    out.loss.backward()
    for name, value in out.logs.items():
        assert isinstance(value, Tensor), f"log {name!r} is a {type(value).__name__}: a number would wait for the device"
        assert not value.requires_grad, f"log {name!r} holds on to the graph; detach it"


def every_parameter_learns(case: Case) -> None:
    """Every trainable parameter gets a gradient and stands in exactly one optimizer group; teachers get none."""
    method = case.build()
    for _ in range(3):
        method.step(case.batch()).loss.backward()
    idle = [n for n, p in method.named_parameters() if p.requires_grad and p.grad is None]
    assert not idle, f"no gradient reaches {idle[:5]}"
    turned = [n for n, p in method.named_parameters() if p.grad is not None and p.grad.stride() != p.stride() and min(p.shape) > 1]
    assert not turned, f"gradients do not lie in memory as their weights do, which a fused optimizer needs: {turned[:5]}"
    grouped = [id(p) for group in method.groups() for p in group["params"]]
    trainable = [id(p) for p in method.parameters() if p.requires_grad]
    assert sorted(grouped) == sorted(trainable), "parameters are missing from the optimizer groups, or stand there twice"
    for teacher in method.teachers:
        moving = [n for n, p in getattr(method, teacher).named_parameters() if p.requires_grad or p.grad is not None]
        assert not moving, f"the teacher {teacher} takes gradients: {moving[:3]}"


def teachers_move_by_ema(case: Case) -> None:
    """A teacher shares no storage with its student, moves only by the average, once per optimizer step."""
    for accumulate in (1, 2):
        method = case.build()
        before = {t: [p.clone() for p in getattr(method, t).parameters()] for t in method.teachers}
        for teacher, student in method.teachers.items():
            own = {p.data_ptr() for p in getattr(method, teacher).parameters()}
            assert not own & {p.data_ptr() for p in getattr(method, student).parameters()}, f"{teacher} shares its weights"
        for _ in range(accumulate):
            method.step(case.batch()).loss.backward()
        for teacher, old in before.items():
            assert all(torch.equal(a, b) for a, b in zip(old, getattr(method, teacher).parameters(), strict=True)), \
                f"{teacher} moved before the optimizer step"
            student = getattr(method, method.teachers[teacher])
            with torch.no_grad():
                for p in student.parameters():
                    p.add_(0.1)
        method.update_teachers(1, 10)
        m = method.momentum(1, 10) if method.teachers else 1.0
        for teacher, old in before.items():
            student = getattr(method, method.teachers[teacher])
            for a, new, s in zip(old, getattr(method, teacher).parameters(), student.parameters(), strict=True):
                torch.testing.assert_close(new, m * a + (1 - m) * s, rtol=1e-4, atol=1e-6)


def same_seed_same_losses(case: Case) -> None:
    """Two runs of one seed agree to the last bit."""
    runs = []
    for _ in range(2):
        method = case.build()
        torch.manual_seed(5)
        runs.append(optimise(case, method, 3))
    assert runs[0] == runs[1], f"one seed gave {runs[0]} and {runs[1]}"


def odd_sizes(case: Case) -> None:
    """Non-square pictures, odd lengths."""
    loss = case.build(odd=True).step(case.batch(odd=True)).loss
    assert torch.isfinite(loss)
    loss.backward()


def bf16_close_to_fp32(case: Case) -> None:
    """Under bfloat16 autocast the loss stays within a few per cent."""
    losses = []
    for enabled in (False, True):
        method = case.build()
        torch.manual_seed(5)
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            losses.append(float(method.step(case.batch()).loss))
    assert math.isclose(losses[0], losses[1], rel_tol=0.08, abs_tol=0.08), f"fp32 {losses[0]:.4f}, bf16 {losses[1]:.4f}"


def loss_falls(case: Case) -> None:
    """Training on learnable data lowers the loss, and the representation does not collapse to a point."""
    method = case.build()
    torch.manual_seed(5)
    losses = optimise(case, method, 40)
    first, last = sum(losses[:8]) / 8, sum(losses[-8:]) / 8
    assert last < first, f"the loss went from {first:.4f} to {last:.4f}"
    if case.tags.target == "text":
        return  # a transcriber is judged by its errors; the mean of its frames means nothing
    spec = case.spec()
    with torch.no_grad():
        h = method.eval()(tiny_batch(spec, 24))
    spread = nn.functional.normalize(h.float(), dim=1).std(0).mean() * h.shape[1] ** 0.5
    assert spread > 1e-3, f"features collapsed: spread {spread:.4f}"


def state_round_trip(case: Case) -> None:
    """A state_dict put into a differently seeded twin gives the same loss."""
    method, twin = case.build(), case.build(seed=1)
    twin.load_state_dict(method.state_dict())
    losses = []
    for m in (method, twin):
        torch.manual_seed(5)
        losses.append(float(m.step(case.batch()).loss))
    assert losses[0] == losses[1], f"loss {losses[0]} became {losses[1]}"


def labels_do_not_leak(case: Case) -> None:
    """Labels on unlabelled samples change nothing."""
    if case.tags.batch == "labeled":
        return
    losses = []
    for poison in (False, True):
        method = case.build()
        torch.manual_seed(5)
        losses.append(float(method.step(case.batch(poison=poison)).loss))
    assert losses[0] == losses[1], "the loss changes when unlabelled samples carry labels"


def views_follow_the_sample(case: Case) -> None:
    """A new epoch gives new views of the same samples."""
    method = case.build()
    spec = case.spec()
    batch = tiny_batch(spec, 4)
    kind = method.tags.views[0]
    first, again = method.views(batch, kind)[0], method.views(batch, kind)[0]
    assert torch.equal(first, again), "one (seed, epoch, index) gave two views"
    later = method.views({**batch, "epoch": batch["epoch"] + 1}, kind)[0]
    assert kind == "clean" or not torch.equal(first, later), "the epoch does not change the view"


CHECKS: dict[str, Callable[[Case], None]] = {check.__name__: check for check in (
    finite_loss_with_gradient, every_parameter_learns, teachers_move_by_ema, same_seed_same_losses, odd_sizes,
    bf16_close_to_fp32, loss_falls, state_round_trip, labels_do_not_leak, views_follow_the_sample)}


def check_method(make: Make, modality: Modality, tags: Tags | None = None, skip: Collection[str] = ()) -> None:
    """Run every check on a method.

    Args:
        make: builds the method from a backbone, views and the data's spec.
        modality: ``images``, ``speech`` or ``series``.
        tags: the method's tags, when its class does not state them.
        skip: names of checks to leave out.

    Raises:
        AssertionError: a check failed; the message says which and how.
    """
    if tags is None:
        spec = tiny_spec(modality)
        tags = make(tiny_backbone("tokens", spec), tiny_views(spec), spec).tags
    case = Case(make, tags, modality)
    for name, check in CHECKS.items():
        if name not in skip:
            try:
                check(case)
            except Exception as error:
                raise AssertionError(f"{name}: {error}") from error
