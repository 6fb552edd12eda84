"""Policies against the USB benchmark's code: the same guesses, weights and fairness terms compared at every step.

The checkout is named on the command line and never part of the project; without it the tests are skipped:

    python -m pytest -n 0 -rP tests/parity/test_usb.py --peer usb=FOLDER

``-rP`` prints the largest differences. Compared with microsoft/Semi-supervised-learning 1ef4cbe, whose modules are loaded without
their packages' ``__init__`` files, which ask for libraries that these modules do not need.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from ssl_suite.methods.self_training.policies import AdaMatch, FlexMatch, FreeMatch, SoftMatch

STEPS, M, K, SAMPLES = 40, 24, 5, 96
Import = Callable[[str], ModuleType]


@pytest.fixture
def usb(checkout: Callable[[str], Path]) -> Iterator[Import]:
    """Imports a module of ``semilearn.algorithms``; what it imports of the trainer is stood in for."""
    folder = checkout("usb") / "semilearn"
    registry = SimpleNamespace(register=lambda name: lambda cls: cls)
    for name, content in {"": {}, ".algorithms": {}, ".core": {"AlgorithmBase": object}, ".core.hooks": {"Hook": object},
                          ".core.utils": {"ALGORITHMS": registry}, **{f".algorithms.{p}": {} for p in
                          ("flexmatch", "freematch", "softmatch", "adamatch")}}.items():
        module: Any = ModuleType(f"semilearn{name}")
        module.__path__ = [str(folder.joinpath(*name.split(".")))]
        vars(module).update(content)
        sys.modules[module.__name__] = module
    yield lambda name: importlib.import_module(f"semilearn.algorithms.{name}")
    for name in [name for name in sys.modules if name.split(".")[0] == "semilearn"]:
        del sys.modules[name]


def stream() -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
    """Steps of index (M,), logits of weak and of strong views (M, K), and logits of labelled rows (8, K); surer as they go on.

    Passes over all samples, so that each was drawn after the first.
    """
    draw = torch.Generator().manual_seed(3)
    for step in range(STEPS):
        if step % (SAMPLES // M) == 0:
            order = torch.randperm(SAMPLES, generator=draw)
        weak, strong, labelled = (torch.randn(n, K, generator=draw) * (1 + 0.2 * step) + torch.arange(K) * 0.4 for n in (M, M, 8))
        yield order[step % (SAMPLES // M) * M:][:M], weak, strong, labelled


def show(name: str, worst: float) -> None:
    """Print the largest difference, for ``-rP``, and hold it to what float32 leaves of equal formulas."""
    print(f"{name}: {worst:.1e}")
    assert worst < 1e-5


def test_flexmatch(usb: Import) -> None:
    theirs = usb("flexmatch.utils").FlexMatchThresholdingHook(SAMPLES, K)
    ours, worst, believed = FlexMatch(K, SAMPLES, 0.8), 0.0, 0.0
    for step, (index, weak, _, _) in enumerate(stream()):
        mask = theirs.masking(SimpleNamespace(p_cutoff=0.8), weak.softmax(1), index, softmax_x_ulb=False)
        _, weight = ours(weak.softmax(1), index=index)
        if step >= SAMPLES // M:  # before, samples never drawn count there and not here: see `FlexMatch`
            worst, believed = max(worst, float((mask - weight).abs().max())), believed + float(weight.mean())
    assert 0.05 < believed / STEPS < 0.95
    show("flexmatch", worst)


def test_freematch(usb: Import) -> None:
    theirs = usb("freematch.utils").FreeMatchThresholingHook(K, 0.9)
    fairness = usb("freematch.freematch").entropy_loss
    algorithm = SimpleNamespace(distributed=False, use_quantile=False, clip_thresh=False)
    ours, worst = FreeMatch(K, 0.9, fairness_weight=1.0), 0.0
    for _, weak, strong, _ in stream():
        mask = theirs.masking(algorithm, weak)
        _, weight = ours(weak.softmax(1))
        term = fairness(mask, strong, theirs.p_model, theirs.label_hist)[0] if mask.any() else torch.zeros(())
        worst = max(worst, float((mask - weight).abs().max()), float((ours.penalty(strong, weight) - term).abs()))
    assert 0.0 < float(weight.mean()) < 1.0
    show("freematch", worst)


def test_softmatch(usb: Import) -> None:
    align = usb("hooks").DistAlignEMAHook(K, 0.9)
    theirs = usb("softmatch.utils").SoftMatchWeightingHook(K, n_sigma=2, momentum=0.9)
    ours, worst = SoftMatch(K, 0.9), 0.0
    for _, weak, _, _ in stream():
        aligned = align.dist_align(SimpleNamespace(distributed=False), weak.softmax(1))
        mask = theirs.masking(SimpleNamespace(distributed=False), aligned, softmax_x_ulb=False)
        target, weight = ours(weak.softmax(1))
        assert torch.equal(target, weak.argmax(1))
        worst = max(worst, float((mask - weight).abs().max()))
    assert 0.0 < float(weight.min()) < 0.9
    show("softmatch", worst)


def test_adamatch(usb: Import) -> None:
    align = usb("hooks").DistAlignEMAHook(K, 0.9, "model")
    theirs = usb("adamatch.utils").AdaMatchThresholdingHook()
    ours, worst, believed = AdaMatch(K, 0.9, 0.9), 0.0, 0.0
    for _, weak, _, labelled in stream():
        aligned = align.dist_align(SimpleNamespace(distributed=False), weak.softmax(1), labelled.softmax(1))
        mask = theirs.masking(SimpleNamespace(p_cutoff=0.9), labelled.softmax(1), aligned, softmax_x_lb=False, softmax_x_ulb=False)
        target, weight = ours(weak.softmax(1), labeled_probs=labelled.softmax(1))
        assert torch.equal(target, aligned.argmax(1))
        worst, believed = max(worst, float((mask - weight).abs().max())), believed + float(weight.mean())
    assert 0.05 < believed / STEPS < 0.95
    show("adamatch", worst)
