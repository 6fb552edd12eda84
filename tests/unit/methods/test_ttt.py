"""Test-time training: what moves, what stays, and independence of the stream's order in standard mode."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor, nn

from ssl_suite.backbones.images import CifarResNet, ViT
from ssl_suite.batch import Spec
from ssl_suite.deploy import Deployed
from ssl_suite.functional.random import Draw, sample_keys
from ssl_suite.functional.rotation import rotate
from ssl_suite.method import Method
from ssl_suite.methods.adaptation.ttt import Rotation, TestTimeTraining, TTTAdapter
from ssl_suite.methods.adaptation.ttt_mae import TestTimeTrainingMAE
from ssl_suite.methods.adaptation.ttt_series import TestTimeTrainingSeries
from ssl_suite.methods.supervised.classifier import Classifier
from ssl_suite.testing import tiny_backbone, tiny_batch, tiny_spec, tiny_views
from ssl_suite.views import Views
from ssl_suite.views.images import Shift

SPEC = Spec("images", (1, 8, 8), classes=("a", "b", "c"), mean=(0.4,), std=(0.3,))
VIEWS = Views({"weak": [Shift(0.125)]}).standardise(SPEC)


def joint(**options) -> TestTimeTraining:
    torch.manual_seed(0)
    return TestTimeTraining(CifarResNet(SPEC, width=8), VIEWS, num_classes=3, shared_until=3, **options).eval()


def rebuilding() -> TestTimeTrainingMAE:
    torch.manual_seed(0)
    backbone = ViT(SPEC, patch_size=2, width=32, depth=2, heads=2)
    return TestTimeTrainingMAE(backbone, VIEWS, num_classes=3, decoder_width=32, decoder_depth=1).eval()


def samples(n: int = 6) -> Tensor:
    return torch.rand(n, 1, 8, 8, generator=torch.Generator().manual_seed(1)) * 3 - 1


def draw(n: int) -> Draw:
    return Draw(sample_keys(0, torch.zeros(n, dtype=torch.int64), torch.arange(n)))


def adapter(method: Method, **options) -> TTTAdapter:
    return TTTAdapter(Deployed(method), **{"views": VIEWS, "lr": 0.05, "copies": 4, **options})


def test_rotate_is_rot90():
    x = samples(4)
    for i, out in enumerate(rotate(x, torch.arange(4))):
        assert torch.equal(out, torch.rot90(x[i], i, (1, 2)))
    with pytest.raises(ValueError, match="square"):
        rotate(torch.zeros(2, 1, 8, 6), torch.zeros(2, dtype=torch.int64))


@pytest.mark.parametrize("expand", [False, True])
def test_the_pretext_loss_is_cross_entropy_of_the_turns(expand):
    method, x = joint(expand=expand), samples()
    loss, accuracy = method.pretext(method.backbone, x, draw(6), None)
    turns = torch.arange(4).repeat(6) if expand else draw(6).integers(4)
    shown = rotate(x.repeat_interleave(4, 0) if expand else x, turns)
    net = nn.Sequential(*method.backbone.stages[:3], *method.pretext.stages)
    logits = method.pretext.fc(net(shown).mean((2, 3)))
    torch.testing.assert_close(loss, nn.functional.cross_entropy(logits, turns))
    torch.testing.assert_close(accuracy, (logits.argmax(1) == turns).float().mean())


def test_the_head_starts_as_a_copy_and_shares_no_weight():
    method = joint()
    main, own = list(method.backbone.stages[3].parameters()), list(method.pretext.stages.parameters())
    assert all(torch.equal(a, b) and a is not b for a, b in zip(main, own, strict=True))


@pytest.mark.parametrize("shared_until", [0, 5])
def test_a_fork_outside_the_backbone_is_refused(shared_until):
    with pytest.raises(ValueError, match="shared_until"):
        Rotation(CifarResNet(SPEC, width=8), shared_until, expand=False)


@pytest.mark.parametrize("make", [joint, rebuilding])
def test_joint_training_lowers_both_losses(make):
    method = make().train()
    optimizer = torch.optim.Adam(method.parameters(), lr=3e-3)
    batch = {"x": samples(24) * 0.3 + 0.4, "y": torch.arange(24) % 3, "index": torch.arange(24)}
    history = []
    for _ in range(30):
        out = method.step(batch)
        optimizer.zero_grad()
        out.loss.backward()
        assert all(p.grad is not None for p in method.parameters() if p.requires_grad)
        optimizer.step()
        history.append(out.logs)
    assert history[-1]["loss_main"] < 0.5 * history[0]["loss_main"]
    assert history[-1]["loss_ssl"] < history[0]["loss_ssl"]


def test_scores_count_the_pretext_task():
    batch = {"x": samples(), "y": torch.zeros(6, dtype=torch.int64), "index": torch.arange(6)}
    total, count = joint().score(batch)["ssl_accuracy"]
    assert count == 6
    assert 0 <= total <= 6


def moved(method: Method) -> set[str]:
    one = adapter(method)
    before = {k: v.clone() for k, v in one.model.method.named_parameters()}
    assert one.adapt(samples()).verdict == "ok"
    return {k for k, v in one.model.method.named_parameters() if not torch.equal(v, before[k])}


def test_shared_layers_and_own_head_move_and_the_main_head_never():
    names = moved(joint())
    assert not [n for n in names if n.startswith(("head", "backbone.groups.2", "backbone.last"))]
    assert {"backbone.stem.weight", "pretext.fc.weight"} <= names
    assert any(n.startswith("pretext.stages") for n in names)


def test_rebuilding_moves_the_encoder_alone():
    assert {name.split(".")[0] for name in moved(rebuilding())} == {"backbone"}


@pytest.mark.parametrize("make", [joint, rebuilding])
def test_standard_mode_does_not_depend_on_the_order(make):
    one, x, index = adapter(make(), online=False, steps=2), samples(), torch.arange(6)
    source = one.predict(x)
    forward = one.predict_and_adapt(x, index=index)[0]
    assert not torch.equal(forward, source)
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    shuffled = torch.cat([one.predict_and_adapt(x[order[:2]], index=index[order[:2]])[0],
                          one.predict_and_adapt(x[order[2:]], index=index[order[2:]])[0]])
    assert torch.equal(shuffled, forward[order])
    assert torch.equal(one.predict(x), source)


def test_online_mode_carries_weights_and_predicts_after_the_update():
    one, x = adapter(joint()), samples()
    logits, report = one.predict_and_adapt(x)
    assert report.n_used == 6
    assert torch.equal(one.predict(x[-1:]), logits[-1:])
    other = adapter(joint())
    reverse = other.predict_and_adapt(x.flip(0))[0].flip(0)
    assert not torch.equal(logits, reverse)


def test_a_bad_sample_does_not_cost_the_others():
    one, x = adapter(joint()), samples()
    x[2] = float("nan")
    logits, report = one.predict_and_adapt(x)
    assert report.n_used == 5
    assert "finite" in report.reason
    assert logits[[0, 1, 3, 4, 5]].isfinite().all()
    assert one.predict(samples()).isfinite().all()


def test_reset_and_saved_state(tmp_path):
    one, x = adapter(joint(), momentum=0.9), samples()
    source, first = one.predict(x), one.predict_and_adapt(x)[0]
    one.save(tmp_path / "adapter.pt")
    two = adapter(joint(), momentum=0.9)
    two.load(tmp_path / "adapter.pt")
    assert torch.equal(one.predict_and_adapt(x)[0], two.predict_and_adapt(x)[0])
    for each in (one, two):
        each.reset()
        assert torch.equal(each.predict(x), source)
        assert torch.equal(each.predict_and_adapt(x)[0], first)


def test_one_step_is_plain_gradient_descent():
    method, x = joint(), samples(1)
    one = TTTAdapter(Deployed(method), copies=4, lr=0.05)
    weight = method.backbone.stem.weight
    keys = sample_keys(0, torch.zeros(1, dtype=torch.int64), torch.zeros(1, dtype=torch.int64), 100)
    loss, _ = method.pretext(method.backbone, x.repeat(4, 1, 1, 1), Draw(keys).copies(4), None)
    (grad,) = torch.autograd.grad(loss, weight)
    one.adapt(x)
    torch.testing.assert_close(one.model.method.backbone.stem.weight, weight - 0.05 * grad)


def test_a_model_without_the_head_is_refused():
    with pytest.raises(ValueError, match="model=ttt"):
        adapter(Classifier(CifarResNet(SPEC, width=8), VIEWS, num_classes=3))


def test_deployed_is_the_method_on_standardised_samples():
    method, x = joint(), torch.rand(4, 1, 8, 8)
    (clean,) = VIEWS({"x": x, "index": torch.arange(4)}, "clean")
    assert torch.equal(Deployed(method)(clean), method.logits({"x": x, "index": torch.arange(4)}))
    assert partial(Deployed, method)().method.backbone is not method.backbone


def filling(**options) -> TestTimeTrainingSeries:
    torch.manual_seed(0)
    spec, options = tiny_spec("series"), {"num_classes": 3, "patch": 4, **options}
    return TestTimeTrainingSeries(tiny_backbone("features", spec), tiny_views(spec), **options).eval()


def over_time(kind: str) -> Method:
    """A method with a masked pretext task on data with a time axis."""
    if kind == "filling":
        return filling()
    torch.manual_seed(0)
    spec = tiny_spec(kind)
    options = {"num_classes": 3, "decoder_width": 32, "decoder_depth": 1}
    return TestTimeTrainingMAE(tiny_backbone("tokens", spec), tiny_views(spec), **options).eval()


def padded(method: Method, n: int = 4) -> tuple[Tensor, Tensor, Tensor]:
    """Standardised samples of which each is shorter than the one before, and zero from there on."""
    batch = tiny_batch(method.backbone.spec, n)
    length = method.backbone.spec.shape[-1] - torch.arange(n) * 5
    (x,) = method.views({**batch, "length": length}, "clean")
    return x, length, batch["index"]


def test_filling_hides_a_share_of_each_rows_own_patches():
    head, x = filling(mask_ratio=0.5).pretext, torch.zeros(4, 2, 32)
    length = torch.tensor([32, 17, 8, 3])
    hidden = head.hidden(x, draw(4), length)
    shown = ~hidden.unflatten(1, (8, 4))
    assert torch.equal(shown.all(2), shown.any(2)), "a patch is hidden in part"
    assert shown.all(2).sum(1).tolist() == [4, 2, 1, 1]
    last = ((length + 3) // 4)[:, None]
    assert not shown.all(2)[torch.arange(8) >= last].any()
    whole = head.hidden(x, draw(4), None)
    assert (whole.sum(1) == 16).all()
    assert torch.equal(whole, head.hidden(x, draw(4), torch.full((4,), 32)))
    assert not torch.equal(whole[0], whole[1])


def test_the_filling_loss_is_the_squared_error_of_hidden_valid_steps():
    method = filling()
    head, backbone, (x, length, _) = method.pretext, method.backbone, padded(filling())
    loss, _ = head(backbone, x, draw(4), length)
    hidden, total, count = head.hidden(x, draw(4), length), 0.0, 0
    for i, steps in enumerate(length.tolist()):
        h = torch.where(hidden[i], 0.0, x[i])[None, :, :steps]
        for stage in (*backbone.stages[:-1], *head.stages):
            h = stage(h)
        error = (head.rebuild(h)[0] - x[i, :, :steps]).square().mean(0)[hidden[i, :steps]]
        total, count = total + error.sum(), count + len(error)
    torch.testing.assert_close(loss, total / count)


def test_filling_never_sees_what_it_rebuilds():
    method = filling()
    x, _, _ = padded(method)
    hidden = method.pretext.hidden(x, draw(4), None)
    seen: list[Tensor] = []
    method.backbone.stages[0].register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    method.pretext(method.backbone, x, draw(4), None)
    assert not seen[0][hidden[:, None].expand_as(x)].any()
    assert torch.equal(seen[0][~hidden[:, None].expand_as(x)], x[~hidden[:, None].expand_as(x)])


@pytest.mark.parametrize("options", [{"patch": 32}, {"patch": 0}, {"mask_ratio": 0.0}, {"mask_ratio": 1.0}])
def test_a_filling_that_hides_nothing_or_all_is_refused(options):
    with pytest.raises(ValueError, match="mask_ratio"):
        filling(**options)


def test_filling_moves_shared_stages_and_its_own_head():
    method = filling()
    one = adapter(method, views=method.views)
    before = {k: v.clone() for k, v in one.model.method.named_parameters()}
    x, length, index = padded(method)
    assert one.predict_and_adapt(x, length, index)[1].n_used == 4
    names = {k for k, v in one.model.method.named_parameters() if not torch.equal(v, before[k])}
    assert {"backbone.entry.weight", "pretext.stages.0.conv2.weight", "pretext.rebuild.weight"} <= names
    assert not [k for k in names if k.startswith(("head", "backbone.blocks.2"))]


@pytest.mark.parametrize("kind", ["filling", "series", "speech"])
@pytest.mark.parametrize("online", [True, False])
def test_padded_samples_over_time_adapt_reset_and_do_not_see_their_padding(kind, online):
    method = over_time(kind)
    one = adapter(method, views=method.views, view="clean", online=online, copies=2)
    x, length, index = padded(method)
    source = one.predict(x, length)
    logits, report = one.predict_and_adapt(x, length, index)
    assert (report.verdict, report.n_used) == ("ok", 4)
    assert not torch.equal(logits, source)
    one.reset()
    assert torch.equal(one.predict(x, length), source)
    assert torch.equal(one.predict_and_adapt(x, length, index)[0], logits)
    one.reset()
    longer = nn.functional.pad(x, (0, 7))
    torch.testing.assert_close(one.predict_and_adapt(longer, length, index)[0], logits, rtol=1e-3, atol=1e-4)
