"""TENT, EATA, CoTTA and NOTE against their authors' code: the same weights and stream, predictions compared at every batch.

Checkouts are named on the command line and never part of the project; without them the tests are skipped:

    python -m pytest -rP tests/parity/test_authors.py --peer tent=FOLDER --peer eata=FOLDER --peer cotta=FOLDER --peer note=FOLDER

``-rP`` prints the largest differences. Everything runs in float64 on the CPU. Compared with DequanWang/tent e9e926a,
mr-eggplant/EATA f739b36, qinenergy/cotta c212a20 and TaesikGong/NOTE a714a2a.
"""

from __future__ import annotations

import importlib
import math
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ssl_suite.adapter import Adapter
from ssl_suite.functional.random import Draw, sample_keys
from ssl_suite.methods.adaptation.cotta import RESTORE_STREAM, CoTTA
from ssl_suite.methods.adaptation.eata import Eata
from ssl_suite.methods.adaptation.note import Note
from ssl_suite.methods.adaptation.tent import Tent
from ssl_suite.views import Views
from tests.parity.tiny import Noise

BATCHES, B, K, SEED = 6, 32, 5, 11
FOLDERS = {"tent": ".", "eata": ".", "cotta": "cifar", "note": "."}
"""Where in a checkout the modules are."""

Import = Callable[[str, str], ModuleType]


@pytest.fixture(autouse=True)
def double(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Float64 throughout: adapters give float32 logits, and what that rounds off would hide behind the tolerance."""
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture
def peer(checkout: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> Import:
    """Imports a module of a checkout, on a machine that has no GPU as far as it can tell, and forgets it and what it imports."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "set_device", lambda index: None)

    def load(name: str, module: str) -> ModuleType:
        folder = checkout(name) / FOLDERS[name]
        monkeypatch.syspath_prepend(folder)
        before = {*sys.modules}
        loaded = importlib.import_module(module)
        for other in {*sys.modules} - before:
            spec = sys.modules[other].__spec__
            if spec and any(str(folder) in str(place) for place in (spec.origin, *(spec.submodule_search_locations or ()))):
                del sys.modules[other]
        return loaded

    return load


def net() -> nn.Module:
    """Two layers with batch norm, whose stored statistics are odd and whose predictions are neither sure nor unsure."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, 2), nn.BatchNorm2d(8), nn.ReLU(),
                          nn.Flatten(), nn.Linear(32, K))
    with torch.no_grad():
        model[-1].weight.mul_(4.0)
        for layer in (model[1], model[4]):
            layer.running_mean.normal_(std=0.1)
            layer.running_var.uniform_(0.1, 0.5)
            layer.weight.uniform_(0.5, 1.5)
            layer.bias.normal_(std=0.3)
    return model


def batch(number: int, n: int = B) -> Tensor:
    """Five patterns under noise, another contrast and brightness in every batch."""
    patterns = torch.randn(K, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    generator = torch.Generator().manual_seed(100 + number)
    x = patterns[torch.randint(0, K, (n,), generator=generator)] + 0.4 * torch.randn(n, 1, 8, 8, generator=generator)
    return x * (1.0 + 0.2 * number) + 0.3 * number


def compare(theirs: Callable[[Tensor], Tensor], ours: Adapter, tolerance: float = 1e-10) -> None:
    """Logits of every batch, each predicted and learned from by both; learning has to move them by far more than they differ."""
    stream, expected, differences = [batch(number) for number in range(BATCHES)], [], []
    for x in stream:
        expected.append(theirs(x).detach())
        logits, report = ours.predict_and_adapt(x)
        assert report.verdict == "ok", report.reason
        assert logits.dtype == torch.float64
        differences.append((logits - expected[-1]).abs().max().item())
    ours.reset()
    moved = max((ours.predict(x) - logits).abs().max().item() for x, logits in zip(stream, expected, strict=True))
    print(f"largest difference {max(differences):.1e}, logits moved by {moved:.1e}")
    assert max(differences) <= tolerance
    assert moved > max(1e-2, 1000 * tolerance)


@pytest.mark.parametrize("steps", [1, 2])
@pytest.mark.parametrize("optimizer", [partial(torch.optim.Adam, lr=0.02), partial(torch.optim.SGD, lr=0.05, momentum=0.9)])
def test_tent(peer: Import, steps: int, optimizer: Callable[..., torch.optim.Optimizer]):
    tent = peer("tent", "tent")
    model = tent.configure_model(net())
    tent.check_model(model)
    theirs = tent.Tent(model, optimizer(tent.collect_params(model)[0]), steps=steps)
    compare(theirs, Tent(net(), optimizer=optimizer, steps=steps))


def fishers(model: nn.Module, batches: list[Tensor]) -> dict[str, list[Tensor]]:
    """What the authors' main program, which cannot be imported, hands to their EATA: squared gradients and the weights."""
    sums = {name: torch.zeros_like(p) for name, p in model.named_parameters() if p.requires_grad}
    for x in batches:
        logits = model(x)
        model.zero_grad()
        nn.functional.cross_entropy(logits, logits.argmax(1)).backward()
        sums = {name: s + model.get_parameter(name).grad ** 2 for name, s in sums.items()}
    model.zero_grad()
    return {name: [s / len(batches), model.get_parameter(name).detach().clone()] for name, s in sums.items()}


@pytest.mark.parametrize("calibrated", [False, True])
def test_eata(peer: Import, calibrated: bool):
    """Both filters leave samples out, and with calibration the penalty is no trifle."""
    eata = peer("eata", "eata")
    optimizer, margin, d_margin, weight = partial(torch.optim.SGD, lr=0.05, momentum=0.9), 0.6, 0.6, 50.0
    clean = [batch(50 + i) for i in range(3)]
    model = eata.configure_model(net())
    eata.check_model(model)
    theirs = eata.EATA(model, optimizer(eata.collect_params(model)[0]), fishers(model, clean) if calibrated else None,
                       fisher_alpha=weight, e_margin=margin * math.log(K), d_margin=d_margin)
    ours = Eata(net(), e0_factor=margin, d_margin=d_margin, fisher_weight=weight, optimizer=optimizer)
    if calibrated:
        ours.calibrate((x, None) for x in clean)
    compare(theirs, ours)
    assert 0 < theirs.num_samples_update_2 < theirs.num_samples_update_1 < BATCHES * B
    if calibrated:
        penalty = sum((f * (model.get_parameter(name) - p).square()).sum() for name, (f, p) in theirs.fishers.items())
        assert weight * penalty > 1e-3


@pytest.mark.parametrize("restore", [0.0, 0.2])
@pytest.mark.parametrize(("confidence", "viewed"), [(0.59, 4), (1.0, 6)])
def test_cotta(peer: Import, monkeypatch: pytest.MonkeyPatch, confidence: float, viewed: int,
               restore: float):
    """The target is the mean over 32 views in ``viewed`` of the six batches, the first among them, and else the plain teacher.

    Were the first target the plain teacher, which is the student still, the gradient would be zero but for rounding, and what
    Adam makes of that is not to be compared. Views and restored weights are drawn by ours and handed to theirs: their views need
    an argument that torchvision no longer takes, and their mask a GPU.
    """
    cotta = peer("cotta", "cotta")
    monkeypatch.setattr(torch.Tensor, "cuda", lambda t: t)
    monkeypatch.setattr(cotta, "get_tta_transforms", lambda: None)
    optimizer, views = partial(torch.optim.Adam, lr=0.01), Views({"weak": [Noise(0.3)]})
    model = cotta.configure_model(net())
    theirs = cotta.CoTTA(model, optimizer(cotta.collect_params(model)[0]), mt_alpha=0.9, rst_m=restore, ap=confidence)
    number = 0

    def run(x: Tensor) -> Tensor:
        nonlocal number
        index, copies, none = torch.arange(B) + B * number, iter(range(32)), torch.zeros(B, dtype=torch.int64)
        theirs.transform = lambda x: views.redraw(x, "weak", Draw(sample_keys(SEED, none, index, next(copies))), None)
        mask = Draw(sample_keys(SEED, index[:1], none[:1], RESTORE_STREAM))
        monkeypatch.setattr(torch, "rand", lambda shape: mask.uniform(*shape)[0])
        number += 1
        return theirs(x)

    compare(run, CoTTA(net(), views=views, momentum_teacher=0.9, restore_prob=restore, confidence=confidence, seed=SEED,
                       optimizer=optimizer))
    anchors = [theirs.model_anchor(batch(number)).softmax(1).amax(1).mean() for number in range(BATCHES)]
    assert sum(bool(c < confidence) for c in anchors) == viewed


def note_args(**more: Any) -> SimpleNamespace:
    """What the authors' script tta.sh asks of NOTE, and `opt` of a data set of ours."""
    opt = {"num_class": K, "classes": [*range(K)], "batch_size": 1024, "learning_rate": 0.01, "weight_decay": 0.0}
    return SimpleNamespace(gpu_idx=0, dataset="ours", model="ours", method="NOTE", tgt_train_dist=0, nsample=10**6, epoch=1,
                           opt=opt, memory_type="PBRS", use_learned_stats=True, update_every_x=48, temperature=1.0, iabn=True,
                           skip_thres=1, load_checkpoint_path="", no_adapt=False, no_optim=False, **more)


@pytest.mark.parametrize("k", [1.0, 4.0])
def test_note(peer: Import, monkeypatch: pytest.MonkeyPatch, k: float):
    """Updates come after samples 48, 96, 144 and 192, so in the middle of some batches; the memory holds the whole stream.

    Theirs divides the entropy by the number of classes, which an epsilon as many times larger evens out in Adam, and adds 1e-6
    to probabilities, for which the tolerance has room.
    """
    pytest.importorskip("pandas")
    conf = peer("note", "conf")
    conf.args = note_args(iabn_k=k, bn_momentum=0.1, memory_size=BATCHES * B)
    monkeypatch.setitem(sys.modules, "conf", conf)
    note = peer("note", "learner.note")
    stream = torch.cat([batch(number) for number in range(BATCHES)])
    none = torch.zeros(1, dtype=torch.int64)
    learner = note.NOTE(SimpleNamespace(Net=net), None, {"train": [(x[None], none, none) for x in stream]}, "")
    logits: list[Tensor] = []
    learner.log_loss_results = lambda *args, **more: None
    learner.evaluation_online = lambda count, condition, sample: logits.append(learner.net.eval()(sample[0][0][None]).detach())
    for count in range(1, len(stream) + 1):
        learner.train_online(count)
    expected = iter(torch.cat(logits).split(B))
    optimizer = partial(torch.optim.Adam, lr=0.01, eps=K * 1e-8)
    compare(lambda x: next(expected), Note(net(), sample_shape=(1, 8, 8), memory_size=len(stream), update_every=48, k=k,
                                           momentum=0.1, optimizer=optimizer), tolerance=1e-8)


class Numbers:
    """Stands in for `random` in the authors' memory, and answers by the numbers that ours draws for the same sample.

    Ours lets the sample in the slot with the largest number leave; theirs keeps lists and no slots, so this keeps count.
    """

    def __init__(self, memory: Any, draws: Tensor) -> None:
        self.memory, self.draws = memory, draws
        self.slots: dict[int, int] = {}

    def insert(self, i: int, label: int) -> None:
        self.draw, self.label, self.slot = self.draws[i], label, len(self.slots)
        self.memory.add_instance([i, label, 0, 0, 0])
        self.slots = {j: self.slots.get(j, self.slot) for entries in self.memory.data for j in entries[0]}

    def uniform(self, low: float, high: float) -> float:
        return self.draw[-1].item()

    def best(self, label: int) -> float:
        return max(self.draw[self.slots[j]].item() for j in self.memory.data[label][0])

    def choice(self, labels: list[int]) -> int:
        self.label = max(labels, key=self.best)
        return self.label

    def randrange(self, low: int, high: int) -> int:
        entries = self.memory.data[self.label][0]
        assert (low, high) == (0, len(entries))
        leaver = max(entries, key=lambda j: self.draw[self.slots[j]])
        self.slot = self.slots[leaver]
        return entries.index(leaver)


def test_the_memory_of_note(peer: Import, monkeypatch: pytest.MonkeyPatch):
    """300 samples with runs of one class through 12 slots; the memories agree after each."""
    conf = peer("note", "conf")
    conf.args = note_args(memory_size=12)
    monkeypatch.setitem(sys.modules, "conf", conf)
    memory = peer("note", "utils.memory")
    ours = Note(nn.Sequential(nn.LayerNorm(1), nn.Linear(1, K)), sample_shape=(1,), memory_size=12)
    none, order = torch.zeros(300, dtype=torch.int64), torch.arange(300)
    draws = Draw(sample_keys(SEED, none, order)).uniform(13)
    theirs = memory.PBRS(12)
    numbers = Numbers(theirs, draws)
    monkeypatch.setattr(memory, "random", numbers)
    torch.manual_seed(0)
    labels = torch.randint(0, K, (75,)).repeat_interleave(4)
    for i, label in enumerate(labels):
        numbers.insert(i, int(label))
        ours.remember(torch.tensor([float(i)]), torch.tensor(1), label, draws[i])
        rows = ours.memory.rows()
        mine = {int(i): int(c) for i, c in zip(ours.memory.samples[rows, 0], ours.memory.labels[rows], strict=True)}
        assert mine == {j: c for c, entries in enumerate(theirs.data) for j in entries[0]}
    assert sorted(mine) != list(range(288, 300))
