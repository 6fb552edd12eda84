"""Policy adaptation: losses, what moves, which transitions count, refusal; and the contract of every adapter."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_suite.backbones.images import ConvNet, PixelEncoder
from ssl_suite.batch import Batch, Spec
from ssl_suite.deploy import Deployed
from ssl_suite.functional.random import Draw, sample_keys
from ssl_suite.functional.rotation import rotate
from ssl_suite.methods.adaptation.pad import NEXT_STREAM, PADAdapter, PolicyAdaptation
from ssl_suite.methods.adaptation.ttt import PRETEXT_STREAM
from ssl_suite.methods.supervised.classifier import Classifier
from ssl_suite.testing import tiny_batch
from ssl_suite.views import Views
from ssl_suite.views.images import Shift

SPEC = Spec("images", (1, 8, 8), mean=(0.4,), std=(0.3,), actions=2)
VIEWS = Views({"weak": [Shift(0.25)]}).standardise(SPEC)


def policy(**options) -> PolicyAdaptation:
    torch.manual_seed(0)
    backbone = PixelEncoder(SPEC, layers=2, width=8, num_features=16)
    method = PolicyAdaptation(backbone, VIEWS, hidden=16, **options)
    method.pretext.typical.fill_(0.1)
    return method.eval()


def adapter(method: PolicyAdaptation | None = None, **options) -> PADAdapter:
    return PADAdapter(Deployed(method or policy()), **{"views": VIEWS, "lr": 1e-2, "copies": 4, "min_action": 0.0, "trial": 0,
                                                       **options})


def sight(t: int, scale: float = 1.0) -> Tensor:
    return scale * torch.randn(1, 1, 8, 8, generator=torch.Generator().manual_seed(t))


def steps(one: PADAdapter, ts=range(4)) -> list[Tensor]:
    return [one.predict_and_adapt(sight(t))[0] for t in ts]


def state(module: torch.nn.Module) -> dict[str, Tensor]:
    return {k: v.detach().clone() for k, v in (*module.named_parameters(), *module.named_buffers())}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) or (a[k].isnan() & b[k].isnan()).all() for k in a)


# Training -------------------------------------------------------------------------------------------------------------


def batch() -> Batch:
    return tiny_batch(SPEC, 6)


def test_the_losses_are_the_formulas():
    method, b = policy(), batch()
    (x,) = VIEWS(b, "weak")
    following = VIEWS.apply_kind(b["next"] / 255.0, "weak", VIEWS.draw(b, NEXT_STREAM))
    h, h_next = method.backbone(x), method.backbone(following)
    out = method.step(b)
    torch.testing.assert_close(out.logs["loss_policy"], (method.policy(h).tanh() - b["y"]).square().mean().detach())
    guess = method.pretext.head(torch.cat([h, h_next], 1))
    torch.testing.assert_close(out.logs["loss_ssl"], (guess - b["action"]).square().mean().detach())
    torch.testing.assert_close(out.loss.detach(), out.logs["loss_policy"] + out.logs["loss_ssl"])


def test_rotation_turns_the_second_observation():
    method, b = policy(task="rotation"), batch()
    following = VIEWS.apply_kind(b["next"] / 255.0, "weak", VIEWS.draw(b, NEXT_STREAM))
    turns = VIEWS.draw(b, PRETEXT_STREAM).integers(4)
    logits = method.pretext.head(method.backbone(rotate(following, turns)))
    torch.testing.assert_close(method.step(b).logs["loss_ssl"], F.cross_entropy(logits, turns).detach())
    one = adapter(method)
    steps(one)
    assert one.adapt(sight(4)).verdict == "ok"


def test_both_observations_are_moved_independently():
    """Where they are the same picture, all pairs of moves occur."""
    method, seen = policy(), []
    b = {**tiny_batch(SPEC, 200), "epoch": torch.zeros(200, dtype=torch.int64)}
    b["x"] = torch.arange(64, dtype=torch.uint8).view(1, 1, 8, 8).expand(200, -1, -1, -1)
    method.pretext.forward = lambda x, following, action, draw: seen.extend([x, following]) or action.new_zeros(())
    method.losses({**b, "next": b["x"]})
    corners = [((s * 0.3 + 0.4) * 255).round().long()[:, 0, 4, 4] for s in seen]
    assert len(set(corners[0].tolist())) == len(set(corners[1].tolist())) == 25
    assert 0.0 < (corners[0] == corners[1]).float().mean() < 0.12  # one pair of moves in 25 is equal


def test_training_remembers_the_loss_it_ends_with_and_evaluation_does_not():
    method = policy().train()
    method.pretext.typical.fill_(torch.nan)
    first = method.step(batch()).logs["loss_ssl"]
    assert method.pretext.typical == first
    method.pretext.typical.fill_(2.0)
    method.step(batch())
    torch.testing.assert_close(method.pretext.typical, 0.99 * torch.tensor(2.0) + 0.01 * first)
    before = method.pretext.typical.clone()
    method.eval().score(batch())
    assert method.pretext.typical == before


def test_training_lowers_both_losses():
    method, history = policy().train(), []
    optimizer = torch.optim.Adam(method.parameters(), lr=3e-3)
    for _ in range(40):
        out = method.step(batch())
        optimizer.zero_grad()
        out.loss.backward()
        optimizer.step()
        history.append(out.logs)
    for name in ("loss_policy", "loss_ssl"):
        assert history[-1][name] < 0.7 * history[0][name]


# What moves -----------------------------------------------------------------------------------------------------------


def moved(stages="all", **options) -> set[str]:
    one = adapter(policy(**options), stages=stages)
    before = state(one.model)
    steps(one)
    return {k for k, v in state(one.model).items() if not torch.equal(v, before[k])}


def test_shared_layers_and_the_head_move_and_the_policy_never():
    for shared in ("all", 2, "none"):
        names = moved(shared=shared)
        assert not [n for n in names if ".policy." in n]
        assert [n for n in names if "pretext.head" in n]
        assert bool([n for n in names if "method.backbone.convs.0" in n]) == (shared != "none")
        assert bool([n for n in names if "method.backbone.project" in n]) == (shared == "all")


def test_the_first_stages_alone_can_be_told_to_learn():
    everything = moved()
    for stages, convs in ((1, {"0"}), (2, {"0", "1"}), ("none", set())):
        names = moved(stages)
        assert {n.split("convs.")[1][0] for n in names if "convs." in n} == convs
        assert {n for n in names if ".head." in n} == {n for n in everything if ".head." in n}
        assert not [n for n in names if "project" in n]
    assert not [n for n in moved(1, shared="none") if "method.backbone" in n]
    with pytest.raises(ValueError, match=r"stages=3 must be .* between 1 and the 2 stages of PixelEncoder"):
        adapter(stages=3)


def test_without_shared_layers_the_policy_stays_as_it_was():
    one, source = adapter(policy(shared="none")), Deployed(policy(shared="none"))
    with torch.no_grad():
        assert all(torch.equal(action, source(sight(t))) for t, action in enumerate(steps(one)))
    assert one.adapt(sight(5)).verdict == "ok"


def test_it_acts_with_the_updated_encoder():
    one = adapter()
    actions = steps(one)
    assert torch.equal(one.predict(sight(3)), actions[-1])
    assert not torch.equal(adapter().predict(sight(3)), actions[-1])
    assert actions[-1].abs().max() <= 1.0


def test_batch_norm_keeps_its_statistics():
    torch.manual_seed(0)
    one = adapter(PolicyAdaptation(ConvNet(SPEC, widths=(8, 8), num_features=8), VIEWS, hidden=8).eval())
    before = {k: v for k, v in state(one.model).items() if "running" in k}
    steps(one)
    assert before
    assert same(before, {k: v for k, v in state(one.model).items() if "running" in k})


# Which transitions count ----------------------------------------------------------------------------------------------


def test_the_first_observation_of_an_episode_follows_from_nothing():
    one = adapter()
    assert one.predict_and_adapt(sight(0))[1].verdict == "skip"
    assert one.predict_and_adapt(sight(1))[1].n_used == 1
    one.start()
    before = state(one.model)
    report = one.adapt(sight(2))
    assert (report.verdict, report.n_used, report.reason) == ("skip", 0, "first observation of an episode")
    assert same(before, state(one.model))
    assert int(one.replay.count) == 1


def test_a_transition_of_hardly_any_action_is_left_out():
    one = adapter(min_action=2.0)  # above the largest norm there is
    before = state(one.model)
    reports = [one.adapt(sight(t)) for t in range(3)]
    assert {r.verdict for r in reports} == {"skip"}
    assert reports[-1].reason == "action smaller than 2.0"
    assert same(before, state(one.model))
    assert int(one.replay.count) == 0


def test_copies_see_the_newest_transition_and_replay_the_last_ones():
    for replay in (1, 3):
        one = adapter(replay=replay, copies=64)
        shown = []
        one.views.redraw = lambda x, *rest, shown=shown: shown.append(x) or x
        steps(one, range(6))
        before, after = ([next(t for t in range(6) if torch.equal(x, sight(t)[0])) for x in side] for side in shown[-2:])
        assert set(zip(before, after, strict=True)) == {(t, t + 1) for t in range(5 - replay, 5)}


def test_what_was_executed_is_learned_in_place_of_what_was_returned():
    one, other = adapter(), adapter()
    returned = steps(one, range(2))[-1]
    steps(other, range(2))
    done = torch.tensor([[0.3, -0.6]])
    one.executed(done)
    losses = [a.adapt(sight(2)).loss for a in (one, other)]
    assert losses[0] != losses[1]
    assert torch.equal(one.replay.action[0], done[0])
    assert torch.equal(other.replay.action[0], returned[0])
    still = adapter()
    steps(still, range(2))
    still.executed(torch.zeros(1, 2))
    still.min_action = 0.1
    assert still.adapt(sight(2)).reason == "action smaller than 0.1"


def test_several_observations_at_once_are_refused():
    with pytest.raises(ValueError, match="one observation at a time, got 2"):
        adapter().adapt(torch.randn(2, 1, 8, 8))


# Refusal --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("typical", "refused"), [(1e-3, True), (10.0, False)])
def test_a_shift_out_of_range_is_refused_before_anything_is_learned(typical, refused):
    method = policy()
    method.pretext.typical.fill_(typical)
    one = adapter(method, trial=20, tolerance=20.0)
    before = state(one.model)
    reports = [one.adapt(sight(t)) for t in range(21)]
    assert same(before, state(one.model))
    assert all("on trial" in r.reason and r.loss > 0 for r in reports[1:])
    reports = [one.adapt(sight(t)) for t in range(21, 30)]
    assert {r.verdict for r in reports} == ({"skip"} if refused else {"ok"})
    assert ("shift out of range: the first 20 losses" in reports[-1].reason) == refused
    assert same(before, state(one.model)) == refused
    one.start()
    one.adapt(sight(40))
    assert one.adapt(sight(41)).verdict == ("skip" if refused else "ok")
    one.reset()
    assert one.trial.missing == 20


@pytest.mark.parametrize("options", [{"copies": 0}, {"replay": 0}, {"trial": -1}, {"tolerance": 0.0}])
def test_numbers_out_of_range(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        adapter(**options)


def test_models_and_tasks_that_are_refused():
    with pytest.raises(ValueError, match="model=pad"):
        PADAdapter(Deployed(Classifier(PixelEncoder(SPEC, layers=2, width=4, num_features=8), VIEWS, num_classes=3)))
    with pytest.raises(ValueError, match="task='turn'"):
        policy(task="turn")


# The contract of tests/contract/test_adapters.py ----------------------------------------------------------------------


def test_predict_changes_nothing_and_is_the_source_model():
    one, source = adapter(), Deployed(policy())
    before = state(one)
    with torch.no_grad():
        assert torch.equal(one.predict(sight(0)), source(sight(0)))
    assert same(before, state(one))


@pytest.mark.parametrize("options", [{}, {"replay": 3}, {"trial": 2}])
def test_reset_goes_back_bit_by_bit(options):
    one = adapter(**options)
    before, first = state(one), steps(one, range(6))
    one.reset()
    assert same(before, state(one))
    assert all(torch.equal(a, b) for a, b in zip(first, steps(one, range(6)), strict=True)), "a second run differs"


@pytest.mark.parametrize("options", [{}, {"replay": 3}, {"trial": 2}])
def test_state_round_trip_in_the_middle_of_an_episode(options, tmp_path):
    one, two = adapter(**options), adapter(**options)
    steps(one, range(5))
    one.save(tmp_path / "adapter.pt")
    two.load(tmp_path / "adapter.pt")
    for t in (5, 6):
        (a, first), (b, second) = one.predict_and_adapt(sight(t)), two.predict_and_adapt(sight(t))
        assert torch.equal(a, b)
        assert first == second
    two.reset()
    assert torch.equal(two.predict(sight(0)), adapter().predict(sight(0)))


def test_a_bad_observation_changes_nothing_but_breaks_the_episode():
    one = adapter()
    steps(one)
    before, optimizer = state(one), copy.deepcopy(one.optimizer.state_dict())
    report = one.adapt(torch.full((1, 1, 8, 8), float("nan")))
    assert report.verdict == "skip"
    assert "finite" in report.reason
    assert {k for k, v in state(one).items() if not torch.equal(v, before[k])} == {"replay.running"}
    assert str(optimizer) == str(one.optimizer.state_dict())
    assert one.adapt(sight(5)).reason == "first observation of an episode"
    assert one.adapt(sight(6)).verdict == "ok"


def test_two_adapters_and_their_source_share_nothing():
    source = Deployed(policy())
    before, expected = state(source), steps(adapter())
    one, two = PADAdapter(source, views=VIEWS, lr=1e-2, copies=4, min_action=0.0, trial=0), adapter()
    for t in range(4):
        assert torch.equal(one.predict_and_adapt(sight(t))[0], expected[t])
        two.adapt(sight(100 + t))
    assert same(before, state(source))
    assert not {t.data_ptr() for t in source.parameters()} & {t.data_ptr() for t in one.parameters()}


def test_constant_observations_and_bfloat16():
    for options in ({}, {"autocast": "bfloat16"}):
        one = adapter(**options)
        for _ in range(3):
            action, report = one.predict_and_adapt(torch.zeros(1, 1, 8, 8))
            assert action.isfinite().all()
        assert report.verdict == "ok", report.reason


def test_what_is_drawn_depends_on_seed_and_count_alone():
    (a,), (b,) = (Draw(sample_keys(3, torch.zeros(1, dtype=torch.int64), torch.tensor([7]), s)).copies(4).integers(5).split(4)
                  for s in (0, NEXT_STREAM))
    assert not torch.equal(a, b)
    assert not torch.equal(steps(adapter(seed=0))[-1], steps(adapter(seed=1))[-1])
