"""The signs of harm and what follows on each, by settings given here."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ssl_suite.functional.adaptation import dependence
from ssl_suite.io.checkpoints import AtomicCheckpointIO
from ssl_suite.methods.adaptation.bn_adapt import BatchNormAdapt
from ssl_suite.methods.adaptation.lame import Lame
from ssl_suite.methods.adaptation.tent import Tent
from ssl_suite.serving.guard import BLOCK, CollapseGuard
from tests.unit.serving.nets import TENT, net, same, samples, weights

LOOSE = {"window": 256, "max_dependence": 10.0, "min_spread": 0.0, "max_unsure": 1e9, "max_drift": 1e9}
"""No sign is ever seen; a test tightens what it is about."""


def one_hot(classes: Tensor, sure: float = 8.0) -> Tensor:
    return sure * torch.nn.functional.one_hot(classes, 4).float()


def stream_of(classes: Tensor) -> list[Tensor]:
    """Logits in batches of a block."""
    return list(one_hot(classes).split(BLOCK))


SHUFFLED = torch.arange(4).repeat(128)[torch.randperm(512, generator=torch.Generator().manual_seed(0))]
SORTED = torch.arange(4).repeat(2).repeat_interleave(64)  # one class after another, four runs in a window


def objections(guard: CollapseGuard, adapter: object, classes: Tensor) -> list[bool]:
    return [bool(guard.objects(adapter, logits, lambda x=logits: x)) for logits in stream_of(classes)]


def test_an_adapter_for_shuffled_streams_is_set_aside_on_sorted_ones_and_comes_back():
    guard = CollapseGuard(**{**LOOSE, "max_dependence": 0.3})
    adapter = Tent(net(), stats="batch")
    assert not any(objections(guard, adapter, SHUFFLED))
    assert objections(guard, adapter, SORTED)[-1]
    assert "Tent is for shuffled streams" in guard.objects(adapter, one_hot(SORTED[-BLOCK:]), lambda: one_hot(SORTED[-BLOCK:]))
    assert not objections(guard, adapter, torch.cat([SHUFFLED, SHUFFLED]))[-1]


def test_changes_explain_runs_of_a_class_only_where_statistics_of_the_batch_make_surer():
    runs = torch.arange(4).repeat(4).repeat_interleave(4 * BLOCK)
    for sure, expected in ((1.1, False), (0.9, True)):
        guard, adapter = CollapseGuard(**{**LOOSE, "window": 512, "max_dependence": 0.1}), Tent(net(), stats="batch")
        said = [guard.objects(adapter, logits, lambda x=logits, by=sure: by * x) for logits in stream_of(runs)]
        assert bool(said[-1]) is expected


def test_an_adapter_for_correlated_streams_is_used_only_there():
    guard, adapter = CollapseGuard(**{**LOOSE, "max_dependence": 0.3}), Lame(net())
    assert adapter.assumes == "correlated"
    assert objections(guard, adapter, SHUFFLED)[-1]
    assert not objections(guard, adapter, SORTED)[-1]


def test_relying_on_alike_neighbours_asks_for_a_clearer_sign_than_suffering_from_them():
    found = dependence(one_hot(SORTED).softmax(1), BLOCK)
    for share, let_in in ((0.8, False), (0.6, True)):
        settings = {**LOOSE, "window": len(SORTED), "max_dependence": share * found}
        assert objections(CollapseGuard(**settings), Tent(net(), stats="batch"), SORTED)[-1]
        assert objections(CollapseGuard(**settings), Lame(net()), SORTED)[-1] is not let_in


def test_a_blend_of_batch_statistics_is_set_aside_as_they_are():
    guard, adapter = CollapseGuard(**{**LOOSE, "max_dependence": 0.3}), BatchNormAdapt(net(), alpha=0.3)
    assert not any(objections(guard, adapter, SHUFFLED))
    assert objections(guard, adapter, SORTED)[-1]


def test_an_adapter_that_relies_on_no_order_is_left_alone():
    guard = CollapseGuard(**{**LOOSE, "max_dependence": 0.0})
    adapter = Tent(net(), stats="source")
    assert adapter.assumes is None
    assert not any(objections(guard, adapter, SORTED))


def judge(guard: CollapseGuard, adapter: Tent, adapted: Tensor, still: Tensor) -> tuple[str, str]:
    return guard.judge(adapter, adapted, lambda: still)


def judged(guard: CollapseGuard, adapter: Tent, adapted: Tensor, source: Tensor) -> list[str]:
    return [judge(guard, adapter, a, s)[0] for a, s in zip(adapted.split(BLOCK), source.split(BLOCK), strict=True)]


def moved(adapter: Tent, by: float = 0.01) -> Tent:
    adapter.adapt(samples())
    with torch.no_grad():
        for p in adapter.learning:
            p.add_(by)
    return adapter


def test_collapse_resets_and_the_last_time_disables():
    guard, adapter = CollapseGuard(**{**LOOSE, "min_spread": 0.5, "max_resets": 3}), TENT(net())
    home, rate = weights(adapter), adapter.optimizer.param_groups[0]["lr"]
    collapsed, diverse = one_hot(torch.zeros(256, dtype=torch.int64)), one_hot(SHUFFLED[:256])
    verdicts: list[str] = []
    while "disable" not in verdicts:
        assert len(verdicts) < 100, verdicts
        moved(adapter)
        verdicts += judged(guard, adapter, collapsed[:BLOCK], diverse[:BLOCK])
        if verdicts[-1] != "ok":
            assert same(weights(adapter), home)
    assert verdicts.count("reset") == 2
    assert adapter.optimizer.param_groups[0]["lr"] == pytest.approx(rate / 27)
    assert guard.disabled
    guard.clear()
    assert not guard.disabled


def test_predictions_less_sure_than_without_learning_are_reset():
    guard, adapter = CollapseGuard(**{**LOOSE, "min_spread": 0.9, "max_unsure": 1.2}), moved(TENT(net()))
    still = one_hot(SHUFFLED[:256], sure=4.0)
    assert set(judged(guard, adapter, one_hot(SHUFFLED[:256], sure=3.9), still)) == {"ok"}
    guard.clear()
    fewer = one_hot(SHUFFLED[:256] // 2, sure=4.0)
    assert set(judged(guard, adapter, one_hot(SHUFFLED[:256], sure=2.0), fewer)) == {"ok"}, "over more classes"
    guard.clear()
    verdict, reason = "ok", ""
    for a, s in zip(one_hot(SHUFFLED[:256], sure=2.0).split(BLOCK), still.split(BLOCK), strict=True):
        if verdict == "ok":
            verdict, reason = judge(guard, adapter, a, s)
    assert verdict == "reset"
    assert "nats of entropy in predictions" in reason


def test_few_classes_are_no_collapse_where_they_are_few_without_learning():
    guard, adapter = CollapseGuard(**{**LOOSE, "min_spread": 0.9}), moved(TENT(net()))
    few = one_hot(torch.zeros(256, dtype=torch.int64))
    assert set(judged(guard, adapter, few, few)) == {"ok"}


def test_far_from_home_goes_back_to_the_last_good_state_and_then_home():
    guard, adapter = CollapseGuard(**{**LOOSE, "max_drift": 0.5, "probe_every": 1}), TENT(net())
    home, logits = weights(adapter), one_hot(SHUFFLED[:BLOCK])
    moved(adapter)
    good, rate = weights(adapter), adapter.optimizer.param_groups[0]["lr"]
    assert judge(guard, adapter, logits, logits) == ("ok", "")
    moved(adapter, by=100.0)
    verdict, reason = judge(guard, adapter, logits, logits)
    assert verdict == "rollback"
    assert "norm" in reason
    assert same(weights(adapter), good)
    assert adapter.optimizer.param_groups[0]["lr"] == pytest.approx(rate / 3)
    moved(adapter, by=100.0)
    assert judge(guard, adapter, logits, logits)[0] == "reset", "the good state was used up"
    assert same(weights(adapter), home)


def test_the_probe_notices_what_was_forgotten():
    model, x = net(), samples(7, 64)
    y = model(x).argmax(1)
    guard = CollapseGuard(**{**LOOSE, "probe": (x, y), "probe_every": 2, "max_drop": 0.1})
    adapter, logits = Tent(model, stats="source"), one_hot(SHUFFLED[:BLOCK])
    adapter.adapt(samples())
    home = weights(adapter)
    assert [judge(guard, adapter, logits, logits)[0] for _ in range(2)] == ["ok", "ok"]
    assert guard.probe_accuracy == 1.0
    with torch.no_grad():
        adapter.learning[0].mul_(-1.0)
    assert judge(guard, adapter, logits, logits)[0] == "ok", "looked at every second update"
    verdict, reason = judge(guard, adapter, logits, logits)
    assert verdict == "rollback"
    assert "probe" in reason
    assert same(weights(adapter), home)


def test_memory_goes_through_a_weights_only_file(tmp_path):
    settings = {**LOOSE, "max_drift": 0.5, "probe_every": 1, "probe": (samples(7), net()(samples(7)).argmax(1))}
    model, logits = net(), one_hot(SHUFFLED[:BLOCK])
    one, adapter = CollapseGuard(**settings), moved(TENT(model))
    one.objects(adapter, logits, lambda: logits)
    judge(one, adapter, logits, logits)
    good = weights(adapter)
    AtomicCheckpointIO().save_checkpoint({"guard": one.state_dict(), "adapter": adapter.state_dict()}, tmp_path / "state.pt")
    state = AtomicCheckpointIO().load_checkpoint(tmp_path / "state.pt")
    two, other = CollapseGuard(**settings), TENT(model)
    two.load_state_dict(state["guard"])
    other.load_state_dict(state["adapter"])
    assert torch.equal(one.seen, two.seen)
    assert torch.equal(one.sure, two.sure)
    moved(other, by=100.0)
    assert judge(two, other, logits, logits)[0] == "rollback"
    assert same(weights(other), good)


@pytest.mark.parametrize("bad", [{"window": BLOCK}, {"max_resets": 0}, {"probe_every": 0}, {"max_drift": -1.0},
                                 {"max_drop": -0.1}, {"min_spread": -0.1}, {"max_dependence": -0.1}, {"max_unsure": 0.9}])
def test_bad_settings(bad):
    with pytest.raises(ValueError, match=rf"guard\.{next(iter(bad))}="):
        CollapseGuard(**bad)
