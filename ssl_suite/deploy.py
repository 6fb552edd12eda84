"""From a trained classifier to an adapted one: everything behind ``adapt.py``."""

from __future__ import annotations

import copy
import inspect
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import hydra
import torch
from omegaconf import DictConfig
from rich.console import Console
from torch import Tensor, nn

from ssl_suite.adapter import Adapter
from ssl_suite.batch import Batch, Spec
from ssl_suite.config import ConfigError, refuse_scripted, validate
from ssl_suite.data.streams import ShiftStreams
from ssl_suite.deploy_report import draw_shifts, draw_stream, report, scores, write_metrics
from ssl_suite.method import Method
from ssl_suite.networks import load_network
from ssl_suite.run import Run, build_data, building, load_run, name_of, plain, refuse_other_samples, save_config
from ssl_suite.serving.stream import Stream
from ssl_suite.streaming import calibrate, clean_error, run_streams
from ssl_suite.summary import Summary, commit, flat, timed_rate, versions, write_summary
from ssl_suite.views import Views

GROUPS = ("name", "seed", "model", "adapter", "checkpoint", "network", "weights", "data", "backbone", "backbones",
          "optimizer", "schedule", "trainer", "stream", "guard", "budget", "root", "trusted_packages")
TARGETS = {"class": "predicts no classes, and this adapter takes only classifiers; train one with model=finetune init_from=RUN, "
                    "or model=supervised",
           "text": "writes no text, and this adapter takes only networks that do; train one with model=ctc, or adapt a "
                   "classifier with model=tent"}
"""{target of an adapter: what is wrong with a network of another}."""


class Deployed(nn.Module):
    """A trained network as a plain function of standardised samples: what an Adapter takes.

    Args:
        method: a trained method with `logits`; copied, without its views and its trainer.
    """

    def __init__(self, method: Method) -> None:
        super().__init__()
        self.method = copy.deepcopy(method, {id(method.views): Views(), id(method._trainer): None}).eval()

    def forward(self, x: Tensor, length: Tensor | None = None) -> Tensor:
        """Logits of standardised samples (B, ...): of classes (B, K), or of frames (B, N, V)."""
        batch: Batch = {"x": x, "index": torch.zeros(len(x), dtype=torch.int64, device=x.device)}
        return self.method.logits(batch if length is None else {**batch, "length": length})

    @property
    def backbone(self) -> nn.Module:
        """The network below the heads."""
        return self.method.encoder

    @property
    def head(self) -> nn.Module | None:
        """The classifier on top, where the method has one."""
        return getattr(self.method, "head", None)

    @property
    def pretext(self) -> nn.Module | None:
        """The self-supervised head, where the method has one."""
        return getattr(self.method, "pretext", None)


@dataclass
class Trained:
    """What is to be adapted.

    Attributes:
        model: maps standardised samples, and ``length`` where rows are padded, to logits; in evaluation mode.
        spec: what its samples look like; mean and deviation are those that it was trained with.
        views: the data's views, standardised likewise.
        data: the data module, set up.
        data_name: name of the data.
    """

    model: nn.Module
    spec: Spec
    views: Views
    data: Any
    data_name: str


def from_run(config: dict[str, Any], run: Run) -> Trained:
    """The network of a run, on its own data or on those of the config.

    Raises:
        ConfigError: the data have other classes or symbols, or samples of another shape.
    """
    if config["weights"] is not None:
        raise ConfigError(f"weights={config['weights']} belongs to network=...; a run brings its own, so leave it out")
    data = build_data(config if config["data"] else {**config, "data": run.config["data"]}, None)
    refuse_other_samples(data.spec, run.spec)
    if data.spec.vocabulary != run.spec.vocabulary:
        raise ConfigError("data: the symbols of the transcripts are not those the checkpoint was trained on: "
                          f"{''.join(data.spec.vocabulary)!r}, {''.join(run.spec.vocabulary)!r}")
    if data.spec.num_classes != run.spec.num_classes:
        raise ConfigError(f"data: {data.spec.num_classes} classes, but the checkpoint was trained on {run.spec.num_classes}")
    name = name_of(config, "data") if config["data"] else data_name(run)
    return Trained(Deployed(run.method), run.spec, run.method.views, data, name)


def from_network(config: dict[str, Any]) -> Trained:
    """A classifier that was trained elsewhere, on the data of the config.

    Raises:
        ConfigError: there are no data or no weights, or they do not fit.
    """
    if not config["data"]:
        raise ConfigError("data is missing: a network brings none; choose those it was trained for with data=...")
    data = build_data(config, None)
    model, mapping = load_network(config["network"], config["weights"], data.spec, config["trusted_packages"])
    Console(soft_wrap=True, highlight=False).print(f"weights: {mapping}")
    return Trained(model, data.spec, data.views, data, name_of(config, "data"))


def build_adapter(config: dict[str, Any], trained: Trained, device: torch.device) -> tuple[Adapter, nn.Module]:
    """The adapter and the source model it starts from, on a device.

    Raises:
        ConfigError: the method cannot adapt the model.
    """
    factory, source = adapter_factory(config, trained.model, trained.views, trained.spec), trained.model.to(device)
    with building("adapter"):
        return factory(source).to(device), source


def adapter_factory(config: dict[str, Any], model: nn.Module, views: Views, spec: Spec) -> Callable[..., Adapter]:
    """What makes the configured adapter of a model, with the views and the shape of its samples where it asks for them.

    Raises:
        ConfigError: the adapter is for networks that predict something else.
    """
    with building("adapter"):
        factory = hydra.utils.instantiate(config["adapter"], _partial_=True, _convert_="all")
        takes = inspect.signature(factory.func).parameters
    target = factory.func.tags.target if hasattr(factory.func, "tags") else "class"
    if (model.method.tags.target if isinstance(model, Deployed) else "class") != target:
        made = type(model.method if isinstance(model, Deployed) else model).__name__
        raise ConfigError(f"checkpoint: {made} {TARGETS[target]}")
    if target == "text" and config.get("guard"):
        raise ConfigError("guard: it watches classes, and these networks write text; leave guard out")
    offers = {"views": copy.deepcopy(views), "sample_shape": spec.shape}
    return partial(factory, **{k: v for k, v in offers.items() if k in takes})


def data_name(run: Run) -> str:
    """Name of the data a run was trained on."""
    path = run.folder / "summary.json"
    return json.loads(path.read_text())["data"] if path.is_file() else run.config["data"]["_target_"].rsplit(".", 1)[-1]


def settle(cfg: DictConfig) -> tuple[dict[str, Any], Run | None]:
    """The config with its seeds settled and checked, and the run where one is named.

    Raises:
        ConfigError: the model does not adapt, not exactly one of ``checkpoint`` and ``network`` is given, or the config
            is invalid.
    """
    if not cfg.adapter:
        raise ConfigError(f"model={cfg.name} is trained by train.py and does not adapt; choose model=tent or "
                          "model=ttt")
    refuse_scripted(cfg)
    if bool(cfg.checkpoint) == bool(cfg.network):
        wrong = "both checkpoint and network are given" if cfg.checkpoint else "checkpoint is missing"
        raise ConfigError(f"{wrong}; give either the folder of a trained classifier, checkpoint=runs/..., or one that was trained "
                          "elsewhere, network=timm network.name=... weights=FILE")
    run = load_run(cfg.checkpoint) if cfg.checkpoint else None
    cfg.seed = (run.config["seed"] if run else 0) if cfg.seed is None else cfg.seed
    cfg.stream.seed = cfg.seed if cfg.stream.seed is None else cfg.stream.seed
    config = plain(cfg)
    validate({k: v for k, v in config.items() if k not in ("model", "trainer")}, GROUPS, config["trusted_packages"])
    return config, run


def deploy(cfg: DictConfig, folder: Path) -> None:
    """Load a classifier, adapt it along the streams, report."""
    started = time.perf_counter()
    config, run = settle(cfg)
    trained = from_run(config, run) if run else from_network(config)
    data, spec = trained.data, trained.spec
    use_gpu = config["trainer"]["accelerator"] in ("gpu", "cuda", "auto") and torch.cuda.is_available()
    device = torch.device("cuda" if use_gpu else "cpu")
    with building("stream"):
        streams: ShiftStreams = hydra.utils.instantiate(config["stream"], _convert_="all")
        streams.segments(data, spec)
    adapter, source = build_adapter(config, trained, device)
    save_config(config, folder)
    clean = clean_error(source, data, spec, streams, device)
    calibrate(adapter, data, spec, streams, device)
    guard, budget = (hydra.utils.instantiate(config[key], _convert_="all") for key in ("guard", "budget"))
    service = Stream(adapter, source, guard=guard, budget=budget)
    outcomes = run_streams(service, source, data, spec, streams, device)
    adapter.save(folder / "adapter.pt")
    (folder / "pictures").mkdir(exist_ok=True)
    draw_stream(folder / "pictures" / "stream.png", outcomes)
    draw_shifts(folder / "pictures" / "shifts.png", data, spec, streams)
    write_metrics(folder, outcomes)
    adapted, plainly = scores(outcomes, clean)
    seconds = sum(sum(o.adapted_ms) for o in outcomes) / 1000.0
    summary: Summary = {
        "method": name_of(config, "model"), "data": trained.data_name, "modality": data.modality, "seed": config["seed"],
        "commit": commit(), "versions": versions(), "wall_seconds": round(time.perf_counter() - started, 2),
        "samples_per_second": timed_rate(sum(len(o.adapted) for o in outcomes), seconds), "data_wait": None,
        "scores": flat(adapted), "references": {"source": flat(plainly)}}
    write_summary(folder, summary)
    report(folder, summary, outcomes, streams.batch_size)
