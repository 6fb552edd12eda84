"""Our side of the benchmarks: a training step is views, loss, gradient, optimizer and teachers, as `Method` runs it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import hydra
import numpy as np
import timm
import torch
from torch import Tensor, nn

from benches.turns import Given, Watch
from ssl_suite.backbones.images import ResNet, ViT, WideResNet
from ssl_suite.backbones.series import SeriesConvNet
from ssl_suite.backbones.speech import Wav2Vec2
from ssl_suite.batch import Spec
from ssl_suite.devices import keep_freed_memory
from ssl_suite.functional.adaptation import entropy
from ssl_suite.functional.probes import knn_accuracy
from ssl_suite.method import Method
from ssl_suite.methods.adaptation.tent import Tent
from ssl_suite.methods.pretraining.mae import MAE
from ssl_suite.methods.pretraining.simclr import SimCLR
from ssl_suite.methods.pretraining.ts2vec import TS2Vec
from ssl_suite.methods.pretraining.wav2vec2 import Wav2Vec2Pretraining
from ssl_suite.methods.self_training.fixmatch import FixMatch
from ssl_suite.methods.supervised.classifier import Classifier
from ssl_suite.methods.supervised.lorot import LoRot
from ssl_suite.nn.norm import select_parameters, set_statistics
from ssl_suite.optim import parameter_groups
from ssl_suite.run import plain
from ssl_suite.serving.guard import CollapseGuard
from ssl_suite.serving.stream import Stream
from ssl_suite.views import Views
from ssl_suite.views.images import RandomResizedCrop

Work = Callable[[], Any]
RATE = 16_000
WAVE: dict[str, Any] = {"conv_channels": 256, "width": 384, "depth": 6, "heads": 6}
"""A wav2vec 2.0 of half the Base width and depth."""


def pictures(given: Given, count: int | None = None, seed: int = 0) -> Tensor:
    """Random uint8 pictures, the same in every process."""
    shape = (count or given.batch, 3, given.size, given.size)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def batch_of(x: Tensor, given: Given) -> dict[str, Tensor]:
    """A batch on the device."""
    return {"x": x.to(given.device), "index": torch.arange(len(x), device=given.device)}


def views_of(given: Given) -> tuple[Spec, Views]:
    """What pictures look like, and the views of ``data=cifar10``."""
    with hydra.initialize_config_module("configs", version_base="1.3"):
        views = plain(hydra.compose("train", ["data=cifar10", "data.path=none"]).data)["views"]
    spec = Spec("images", (3, given.size, given.size), mean=(0.5,) * 3, std=(0.25,) * 3)
    return spec, Views(hydra.utils.instantiate(views, _convert_="all")).standardise(spec)


def learner(method: Method, batch: dict[str, Any], given: Given, watch: Watch, precision: torch.dtype | None = None,
            make: Callable[..., torch.optim.Optimizer] = torch.optim.AdamW) -> Work:
    """One training step of a method on a batch, always the same."""
    if given.device.type == "cpu":
        keep_freed_memory()
    method.to(given.device)
    method.views.register_forward_pre_hook(lambda *_: watch.__enter__())
    method.views.register_forward_hook(lambda *_: watch.__exit__())
    optimizer = make(parameter_groups(method), fused=True)

    def step() -> None:
        with torch.autocast(given.device.type, precision) if precision else contextlib.nullcontext():
            loss = method.step(batch).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if method.teachers:
            method.update_teachers(1000, 1_000_000)

    return step


def crops(given: Given, watch: Watch) -> Work:
    """One view of the kind ``crop`` of each picture."""
    if given.device.type == "cpu":
        keep_freed_memory()
    batch = batch_of(pictures(given), given)
    views = views_of(given)[1].to(given.device)
    return lambda: views(batch, "crop")


def simclr(given: Given, watch: Watch, precision: torch.dtype | None = None) -> Work:
    """SimCLR, ResNet-18 with the stem for small pictures."""
    spec, views = views_of(given)
    method = SimCLR(ResNet(spec, name="resnet18"), views, hidden_dim=512, projection_dim=128)
    return learner(method, batch_of(pictures(given), given), given, watch, precision)


def masked_autoencoder(given: Given) -> MAE:
    """A masked autoencoder with the decoder of the paper, 512 wide and 8 deep, on random crops."""
    spec = Spec("images", (3, given.size, given.size), mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    views = Views({"crop": [RandomResizedCrop(scale=(0.2, 1.0), flip=0.5)]}).standardise(spec)
    return MAE(ViT(spec, name=given.network, patch_size=16), views, view="crop")


def mae(given: Given, watch: Watch, precision: torch.dtype | None = None) -> Work:
    """The masked autoencoder."""
    return learner(masked_autoencoder(given), batch_of(pictures(given), given), given, watch, precision)


def fixmatch(given: Given, watch: Watch, precision: torch.dtype | None = None) -> Work:
    """FixMatch, WRN-28-2, seven unlabelled pictures for each labelled one."""
    spec, views = views_of(given)
    labeled, unlabeled = (batch_of(pictures(given, n, seed), given) for n, seed in ((given.batch, 0), (7 * given.batch, 1)))
    labeled["y"] = torch.arange(given.batch, device=given.device) % 10
    method = FixMatch(WideResNet(spec), views, num_classes=10)
    sgd = partial(torch.optim.SGD, lr=0.03, momentum=0.9, nesterov=True)
    return learner(method, {"labeled": labeled, "unlabeled": unlabeled}, given, watch, precision, sgd)


def supervised(given: Given, watch: Watch, variant: Literal["implicit", "explicit"] | None = None) -> Work:
    """Supervised training, and the same with the turn of a patch as a second task."""
    spec, views = views_of(given)
    batch = batch_of(pictures(given), given) | {"y": torch.arange(given.batch, device=given.device) % 10}
    network = ResNet(spec, name=given.network)
    method = LoRot(network, views, num_classes=10, variant=variant) if variant else Classifier(network, views, num_classes=10)
    return learner(method, batch, given, watch)


def waves(given: Given) -> Tensor:
    """Random waveforms, the same in every process."""
    return 0.1 * torch.randn(given.batch, given.size, generator=torch.Generator().manual_seed(0))


def wav2vec2(given: Given, watch: Watch, precision: torch.dtype | None = None) -> Work:
    """wav2vec 2.0 of half the Base size with the paper's targets."""
    spec = Spec("speech", (given.size,), rate=RATE)
    network: Any = Wav2Vec2(spec, layerdrop=0.0, **WAVE)
    method = Wav2Vec2Pretraining(network, Views({"weak": []}).standardise(spec))
    return learner(method, batch_of(waves(given), given), given, watch, precision)


def series(given: Given) -> Tensor:
    """Random series of one channel, the same in every process."""
    return torch.randn(given.batch, 1, given.size, generator=torch.Generator().manual_seed(0))


def ts2vec(given: Given, watch: Watch, precision: torch.dtype | None = None) -> Work:
    """TS2Vec with the encoder of the paper."""
    spec = Spec("series", (1, given.size))
    method = TS2Vec(SeriesConvNet(spec, depth=10, num_features=320, norm="none"), Views().standardise(spec))
    return learner(method, batch_of(series(given), given), given, watch, precision)


def classifier(given: Given) -> tuple[nn.Module, Tensor]:
    """A classifier in evaluation mode and standardised pictures, the same in every process."""
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"img_size": given.size} if given.network.startswith("vit") else {}
    model = timm.create_model(given.network, num_classes=10, **sizes).eval().to(given.device)
    return model, torch.randn(given.batch, 3, given.size, given.size, device=given.device)


def forward_backward(given: Given, watch: Watch) -> Work:
    """What no adaptation can do without: forward pass, entropy, its gradient with respect to the normalisation."""
    bare, x = classifier(given)
    bare.requires_grad_(False)
    parameters = select_parameters(bare)
    for p in parameters:
        p.requires_grad_()
    set_statistics(bare, "batch")
    return lambda: torch.autograd.grad(entropy(bare(x)).mean(), parameters)


def tent(given: Given, watch: Watch) -> Work:
    """Adapt and predict."""
    model, x = classifier(given)
    adapter = Tent(model)
    return lambda: adapter.predict_and_adapt(x)


def tent_guarded(given: Given, watch: Watch) -> Work:
    """The same in a guarded stream."""
    model, x = classifier(given)
    stream = Stream(Tent(model), model.requires_grad_(False), guard=CollapseGuard())
    return lambda: stream.predict_and_adapt(x)


def features(given: Given) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Random features of width 512 with classes, and a fifth as many queries with theirs."""
    rng, counts = np.random.default_rng(0), (given.batch, given.batch // 5)
    train, test = (rng.standard_normal((n, 512), dtype=np.float32) for n in counts)
    y, test_y = (rng.integers(0, 10, n) for n in counts)
    return train, y, test, test_y


def knn(given: Given, watch: Watch) -> Work:
    """Weighted nearest neighbours, k = 20, T = 0.07."""
    train, y, test, test_y = features(given)
    return lambda: knn_accuracy(train, y, test, test_y, 20, 0.07)


def knn_product(given: Given, watch: Watch) -> Work:
    """The similarities alone."""
    bank, queries = (nn.functional.normalize(torch.from_numpy(f), dim=1) for f in features(given)[::2])
    return lambda: [part @ bank.T for part in queries.split(4096)]
