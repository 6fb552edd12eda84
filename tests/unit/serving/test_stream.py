"""One stream: bad batches, readers beside updates, reset, state."""

from __future__ import annotations

import itertools
import threading
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from ssl_suite.adapter import Adapter
from ssl_suite.batch import AdaptReport
from ssl_suite.methods.adaptation.roid import Roid
from ssl_suite.serving.budget import Budget
from ssl_suite.serving.guard import CollapseGuard
from ssl_suite.serving.stream import Stream
from tests.unit.serving.nets import SHAPE, TENT, Door, Held, net, same, samples, weights

LOOSE = {"window": 256, "max_dependence": 10.0, "min_spread": 0.0, "max_drift": 1e9}


def stream(guard: CollapseGuard | None = None, adapter: Adapter | None = None, **given: Any) -> Stream:
    source = net()
    return Stream(adapter or TENT(source), source, guard=guard, **{"shape": SHAPE, **given})


def test_without_guard_it_is_the_adapter_bit_by_bit():
    one, two = stream(), TENT(net())
    for seed in range(5):
        (a, first), (b, second) = one.predict_and_adapt(samples(seed)), two.predict_and_adapt(samples(seed))
        assert torch.equal(a, b)
        assert (first.verdict, first.n_used, first.loss) == (second.verdict, second.n_used, second.loss)
        assert first.ms > 0.0
        assert torch.equal(one.predict(samples(9)), two.predict(samples(9)))
    assert one.counts == {"ok": 5, "predicted": 5 * 32 + 5 * 32, "learned": 160}


def test_roid_leaves_the_prior_alone_where_its_guard_finds_neighbours_unlike():
    frozen = partial(Roid, optimizer=partial(torch.optim.SGD, lr=0.0), stats="source")
    x, plain = samples(), net()(samples()).detach()
    corrected = frozen(net()).predict(x)
    assert not torch.equal(corrected, plain)
    for max_dependence, expected in ((10.0, plain), (-1.0, corrected)):
        guarded = stream(CollapseGuard(**LOOSE), frozen(net()))
        guarded.guard.max_dependence = max_dependence
        assert torch.equal(guarded.predict_and_adapt(x)[0], expected)
        assert torch.equal(guarded.predict(x), expected)
        assert torch.equal(guarded.still.predict(x), expected)
        guarded.reset()
        assert torch.equal(guarded.predict(x), plain)


@pytest.mark.parametrize("guarded", [True, False])
def test_bad_batches_leave_no_trace(guarded):
    plain, hit = (stream(CollapseGuard(**LOOSE) if guarded else None) for _ in range(2))
    bad = samples(3)
    bad[0] = float("nan")
    for seed in range(4):
        logits, report = hit.predict_and_adapt(bad)
        assert report.verdict == "skip"
        assert "finite" in report.reason
        logits, report = hit.predict_and_adapt(samples(n=0))
        assert (logits.shape, report.verdict) == ((0, 4), "skip")
        assert torch.equal(plain.predict_and_adapt(samples(seed))[0], hit.predict_and_adapt(samples(seed))[0])
    assert same(weights(plain.adapter), weights(hit.adapter))
    assert hit.predict(samples(n=0)).shape == (0, 4)
    if guarded:
        assert torch.equal(plain.guard.seen, hit.guard.seen)


def test_constant_pictures_stay_finite():
    one = stream(CollapseGuard(**LOOSE))
    for value in (0.0, 1.0, -3.0):
        logits, _ = one.predict_and_adapt(torch.full((32, *SHAPE), value))
        assert logits.isfinite().all()
    assert one.predict(samples()).isfinite().all()


@pytest.mark.parametrize("x", [torch.zeros(4, 1, 8, 9), torch.zeros(4, 3, 8, 8), torch.zeros(1, 8, 8)])
def test_another_shape_is_refused_and_the_right_one_named(x):
    one = stream()
    for call in (one.predict, one.adapt):
        with pytest.raises(ValueError, match=r"takes \(1, 8, 8\)"):
            call(x)
    assert not one.counts


def test_a_size_that_may_vary():
    one = stream(shape=(1, None, 8))
    one.check(torch.zeros(4, 1, 5, 8))
    with pytest.raises(ValueError, match=r"takes \(1, any, 8\)"):
        one.check(torch.zeros(4, 1, 5, 9))


def test_reset_is_bit_exact_and_so_is_what_follows():
    one = stream(CollapseGuard(**LOOSE))
    before = one.predict(samples(9))
    first = [one.predict_and_adapt(samples(s))[0] for s in range(4)]
    assert not torch.equal(one.predict(samples(9)), before)
    one.reset()
    assert torch.equal(one.predict(samples(9)), before)
    assert all(torch.equal(a, one.predict_and_adapt(samples(s))[0]) for s, a in enumerate(first))


def test_a_reader_does_not_wait_for_an_update_and_sees_nothing_of_it():
    door, source = Door(), net()
    one = Stream(Held(source, door), source)
    before = one.predict(samples())
    writer = threading.Thread(target=one.adapt, args=(samples(),))
    writer.start()
    try:
        assert door.reached.wait(60)
        assert torch.equal(one.predict(samples()), before), "half an update was seen"
        assert writer.is_alive()
    finally:
        door.open.set()
        writer.join()
    assert not torch.equal(one.predict(samples()), before)


def test_many_first_readers_at_once():
    one, x = stream(), samples()
    expected, start, found = one.predict(x), threading.Barrier(6), list[Tensor]()

    def read() -> None:
        start.wait(60)
        found.append(one.predict(x))

    threads = [threading.Thread(target=read) for _ in range(6)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert len(found) == 6, "a reader failed"
    assert all(torch.equal(f, expected) for f in found)
    taken = one.idle.copy()
    one.idle.clear()
    assert torch.equal(one.predict(x), expected), "a reader made anew, before the first update"
    one.idle.extend(taken)


def test_readers_see_published_versions_only():
    """Predictions in threads during updates equal those of some version between the ones before and after the call."""
    x, updates = samples(99), 30
    reference, versions = stream(), []
    versions.append(reference.predict(x))
    for seed in range(updates):
        reference.adapt(samples(seed))
        versions.append(reference.predict(x))
    assert all(not torch.equal(a, b) for a, b in itertools.pairwise(versions)), "versions can be told apart"

    one, done, seen, errors = stream(), threading.Event(), list[tuple[int, Tensor, int]](), list[Exception]()

    def read() -> None:
        try:
            while not done.is_set():
                before = one.published.version
                logits = one.predict(x)
                seen.append((before, logits, one.published.version))
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=read) for _ in range(3)]
    for t in threads:
        t.start()
    for seed in range(updates):
        one.adapt(samples(seed))
    done.set()
    for t in threads:
        t.join()
    assert not errors
    assert len({after for _, _, after in seen}) > 3, "the readers saw too few versions to prove anything"
    for before, logits, after in seen:
        assert any(torch.equal(logits, versions[v]) for v in range(before, after + 1))
    assert one.counts["predicted"] == 32 * (updates + len(seen))


class Scripted(CollapseGuard):
    """Says what a test wants it to say."""

    def __init__(self, objection: str = "", verdict: str = "ok") -> None:
        super().__init__()
        self.objection, self.verdict = objection, verdict

    def objects(self, *given: Any) -> str:
        return self.objection

    def judge(self, *given: Any) -> tuple[str, str]:
        return self.verdict, "a reason" if self.verdict != "ok" else ""


def test_where_the_guard_objects_the_source_model_predicts_for_all():
    guard = Scripted()
    one, x = stream(guard), samples(9)
    one.adapt(samples())
    adapted, home = one.predict(x), net()(x)
    before = weights(one.adapter)
    guard.objection = "neighbours are alike"
    logits, report = one.predict_and_adapt(x)
    assert (report.verdict, report.reason, report.n_used) == ("skip", "neighbours are alike", 0)
    assert torch.equal(logits, home)
    assert torch.equal(one.predict(x), home)
    assert same(weights(one.adapter), before)
    one.adapt(samples(n=0))
    assert torch.equal(one.predict(x), home), "an empty batch changes nothing"
    guard.objection, one.budget = "", Budget(max_ms=1.0)
    one.budget.spent(100.0)
    assert torch.equal(one.predict_and_adapt(x)[0], adapted)
    assert torch.equal(one.predict(x), adapted), "the objection is gone, though the budget lets no update through"


def test_what_was_undone_was_not_learned():
    one = stream(Scripted(verdict="rollback"))
    logits, report = one.predict_and_adapt(samples())
    assert (report.verdict, report.reason, report.n_used) == ("rollback", "a reason", 0)
    assert torch.equal(logits, TENT(net()).predict(samples()))
    assert one.counts["learned"] == 0


def test_switched_off_it_predicts_and_learns_no_more():
    guard = CollapseGuard(**{**LOOSE, "max_drift": 10.0})
    one, x = stream(guard), samples(9)
    guard.disabled, before = True, weights(one.adapter)
    logits, report = one.predict_and_adapt(x)
    assert report.verdict == "skip"
    assert "reset()" in report.reason
    assert torch.equal(logits, one.predict(x))
    assert same(weights(one.adapter), before)
    one.reset()
    assert one.adapt(x).verdict == "ok"


def test_over_the_budget_it_only_predicts():
    one = stream(budget=Budget(max_mib=1e-4))
    assert one.adapt(samples()).verdict == "ok", "the first batch is the one that is measured"
    before = weights(one.adapter)
    logits, report = one.predict_and_adapt(samples(2))
    assert (report.verdict, report.n_used) == ("skip", 0)
    assert "max_mib" in report.reason
    assert torch.equal(logits, one.predict(samples(2)))
    assert same(weights(one.adapter), before)


def test_state_goes_through_a_file_and_on_as_if_nothing_had_been(tmp_path):
    one, two = (stream(CollapseGuard(**{**LOOSE, "probe_every": 2})) for _ in range(2))
    for seed in range(5):
        one.adapt(samples(seed))
    one.save(tmp_path / "state.pt")
    two.load(tmp_path / "state.pt")
    assert torch.equal(one.predict(samples(9)), two.predict(samples(9)))
    for seed in range(5, 9):
        (a, first), (b, second) = one.predict_and_adapt(samples(seed)), two.predict_and_adapt(samples(seed))
        assert torch.equal(a, b)
        assert AdaptReport(first.loss, first.n_used) == AdaptReport(second.loss, second.n_used)
    two.reset()
    assert torch.equal(two.predict(samples(9)), stream().predict(samples(9)))


def test_a_stream_that_was_set_aside_still_is_after_loading(tmp_path):
    one, two = stream(Scripted()), stream(Scripted())
    one.adapt(samples())
    one.guard.objection = "neighbours are alike"
    one.adapt(samples())
    one.save(tmp_path / "state.pt")
    two.load(tmp_path / "state.pt")
    assert torch.equal(two.predict(samples(9)), net()(samples(9)))
    two.adapt(samples())
    assert not torch.equal(two.predict(samples(9)), net()(samples(9)))


def test_inference_mode_is_refused():
    with torch.inference_mode(), pytest.raises(RuntimeError, match="inference"):
        stream().adapt(samples())
