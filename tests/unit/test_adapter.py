"""The contract of every Adapter: state, reset, persistence, guard."""

from __future__ import annotations

import copy
import threading
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from ssl_suite.adapter import Adapter
from ssl_suite.methods.adaptation.tent import Tent
from ssl_suite.nn.norm import select_parameters, set_statistics

SGD = partial(torch.optim.SGD, lr=0.1, momentum=0.9)


def net(norm: str = "batch") -> nn.Module:
    torch.manual_seed(0)
    layer = {"batch": nn.BatchNorm2d(8), "group": nn.GroupNorm(2, 8), "none": nn.Identity()}[norm]
    model = nn.Sequential(nn.Conv2d(1, 8, 3), layer, nn.ReLU(), nn.Dropout(0.5), nn.Flatten(), nn.Linear(8 * 36, 4))
    if norm == "batch":
        layer.running_mean.normal_()
        layer.running_var.uniform_(0.5, 2.0)
    return model


def samples(n: int = 32, seed: int = 1) -> Tensor:
    return torch.randn(n, 1, 8, 8, generator=torch.Generator().manual_seed(seed))


def everything(module: nn.Module) -> dict[str, Tensor]:
    return {k: v.clone() for k, v in (*module.named_parameters(), *module.named_buffers())}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


@pytest.mark.parametrize("optimizer", [SGD, partial(torch.optim.Adam, lr=0.01)])
def test_reset_is_bit_exact_and_so_is_what_follows(optimizer):
    adapter, x = Tent(net(), optimizer=optimizer), samples()
    before, first = adapter.predict(x), adapter.predict_and_adapt(x)[0]
    second = adapter.predict_and_adapt(x)[0]
    assert not torch.equal(adapter.predict(x), before)
    adapter.reset()
    assert torch.equal(adapter.predict(x), before)
    assert torch.equal(adapter.predict_and_adapt(x)[0], first)
    assert torch.equal(adapter.predict_and_adapt(x)[0], second)


def test_predict_is_the_plain_model_with_source_statistics():
    model, x = net(), samples()
    adapter = Tent(model, stats="source")
    assert torch.equal(adapter.train().predict(x), model.eval()(x))
    adapter.adapt(x)
    adapter.reset()
    assert torch.equal(adapter.predict(x), model.eval()(x))


@pytest.mark.parametrize("stats", ["source", "batch"])
def test_predict_changes_nothing(stats):
    adapter = Tent(net(), stats=stats)
    before = everything(adapter)
    logits = adapter.predict(samples())
    assert not logits.requires_grad
    assert same(before, everything(adapter))


def test_modes_from_outside_do_not_matter():
    adapter, x = Tent(net()), samples()
    assert torch.equal(adapter.eval().predict(x), adapter.train().predict(x))


def test_batch_statistics_are_used_and_leave_the_stored_ones():
    model, x = net(), samples()
    adapter = Tent(model, stats="batch")
    reference = copy.deepcopy(model).eval()
    reference[1].train()
    torch.testing.assert_close(adapter.predict(x), reference(x))
    adapter.adapt(x)
    assert torch.equal(adapter.model[1].running_mean, model[1].running_mean)
    set_statistics(adapter.model, "source")
    assert adapter.model[1].track_running_stats
    assert not adapter.model[1].training


def test_only_selected_parameters_move_and_never_the_callers_model():
    model = net()
    source = everything(model)
    adapter = Tent(model, optimizer=SGD)
    adapter.adapt(samples())
    moved = {k for k, v in adapter.model.named_parameters() if not torch.equal(v, source[k])}
    assert moved == {"1.weight", "1.bias"}
    assert same(source, everything(model))


def test_saved_state_gives_the_same_next_prediction_and_update(tmp_path):
    model, x = net(), samples()
    one = Tent(model, optimizer=SGD)
    one.adapt(x)
    one.save(tmp_path / "adapter.pt")
    two = Tent(model, optimizer=SGD)
    source = two.predict(x)
    two.load(tmp_path / "adapter.pt")
    assert torch.equal(one.predict(x), two.predict(x))
    assert one.adapt(samples(seed=2)) == two.adapt(samples(seed=2))
    assert torch.equal(one.predict(x), two.predict(x))
    two.reset()
    assert torch.equal(two.predict(x), source)


def test_state_holds_what_was_adapted_only():
    assert not {"model.0.weight", "model.5.weight"} & Tent(net()).state_dict()["tensors"].keys()


def test_state_of_other_source_weights_is_refused(tmp_path):
    Tent(net()).save(tmp_path / "adapter.pt")
    other = net()
    with torch.no_grad():
        other[5].bias[0] += 1e-3
    adapter = Tent(other)
    before = everything(adapter)
    with pytest.raises(ValueError, match="fingerprint"):
        adapter.load(tmp_path / "adapter.pt")
    assert same(before, everything(adapter))


def test_state_of_another_selection_is_refused():
    with pytest.raises(ValueError, match="other tensors"):
        Tent(net(), params="all").load_state_dict(Tent(net()).state_dict())


def test_a_bad_batch_is_skipped_and_leaves_the_state():
    adapter, x = Tent(net(), optimizer=SGD), samples()
    adapter.adapt(x)
    before, logits = everything(adapter), adapter.predict(x)
    bad = samples(seed=3)
    bad[0] = float("nan")
    out, report = adapter.predict_and_adapt(bad)
    assert report.verdict == "skip"
    assert "finite" in report.reason
    assert report.n_used == 0
    assert out[1:].isfinite().all()
    assert same(before, everything(adapter))
    assert torch.equal(adapter.predict(x), logits)
    assert adapter.adapt(x).verdict == "ok"


def test_an_update_that_blows_up_is_undone():
    adapter = Tent(net(), optimizer=partial(torch.optim.SGD, lr=float("inf")))
    before = everything(adapter)
    assert adapter.adapt(samples()).verdict == "skip"
    assert same(before, everything(adapter))


def test_an_exception_in_an_update_is_undone():
    class Torn(Adapter):
        def update(self, x, length, index):
            self.learn(self(x).square().mean())
            raise KeyError("torn")

    adapter = Torn(net(), select_parameters, SGD)
    before = everything(adapter)
    with pytest.raises(KeyError):
        adapter.adapt(samples())
    assert same(before, everything(adapter))


def test_inference_mode_is_refused_and_no_grad_is_not():
    adapter = Tent(net())
    with torch.inference_mode(), pytest.raises(RuntimeError, match="inference_mode=False"):
        adapter.adapt(samples())
    with torch.no_grad():
        assert adapter.adapt(samples()).verdict == "ok"
    with torch.inference_mode():
        x = samples()
    assert adapter.adapt(x).verdict == "ok"


def test_no_normalisation_layers():
    with pytest.raises(ValueError, match="no normalisation layers"):
        Tent(net("none"))
    with pytest.raises(ValueError, match="backbone"):
        Tent(net(), params="encoder")
    Tent(net("none"), params="all").adapt(samples())


def test_small_batches_are_predicted_with_the_stored_statistics():
    model = net()
    adapter, x = Tent(model, min_batch=16), samples(1)
    logits, report = adapter.predict_and_adapt(x)
    assert report.verdict == "skip"
    assert torch.equal(logits, model.eval()(x))


def test_constant_input_stays_finite():
    adapter = Tent(net())
    logits, report = adapter.predict_and_adapt(torch.zeros(32, 1, 8, 8))
    assert report.verdict == "ok"
    assert logits.isfinite().all()


def test_bfloat16_stays_close():
    x = samples()
    one, two = (Tent(net("group"), stats="source", autocast=t).predict_and_adapt(x)[0] for t in (None, "bfloat16"))
    assert two.dtype == torch.float32
    assert not torch.equal(one, two)
    torch.testing.assert_close(one, two, rtol=0.05, atol=0.05)


def test_two_adapters_share_nothing():
    model, x = net(), samples()
    alone = Tent(model, optimizer=SGD)
    expected = [alone.predict_and_adapt(samples(seed=s))[0] for s in range(4)]
    one, two = Tent(model, optimizer=SGD), Tent(model, optimizer=SGD)
    for s in range(4):
        assert torch.equal(one.predict_and_adapt(samples(seed=s))[0], expected[s])
        two.adapt(samples(seed=100 + s))
    assert not torch.equal(one.predict(x), two.predict(x))


def test_calls_from_many_threads_are_serialised():
    adapter, x = Tent(net(), optimizer=SGD), samples()
    errors: list[Exception] = []

    def work(i: int) -> None:
        try:
            for _ in range(5):
                adapter.adapt(x) if i % 2 else adapter.predict(x)
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not errors
    assert adapter.seen == 10 * len(x)
    reference = Tent(net(), optimizer=SGD)
    for _ in range(10):
        reference.adapt(x)
    assert torch.equal(adapter.predict(x), reference.predict(x))
