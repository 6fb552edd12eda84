"""From a trained run to an adapted model: everything behind ``adapt.py``."""

from __future__ import annotations

import copy
import inspect
import json
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import hydra
import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn

from ssl_suite.adapter import Adapter
from ssl_suite.batch import Batch
from ssl_suite.config import ConfigError, validate
from ssl_suite.data.streams import ShiftStreams
from ssl_suite.deploy_report import draw_shifts, draw_stream, report, scores, write_metrics
from ssl_suite.method import Method
from ssl_suite.run import Run, build_data, building, load_run, name_of, plain
from ssl_suite.streaming import Outcome, calibrate, clean_error, run_streams
from ssl_suite.summary import Summary, commit, flat, timed_rate, versions, write_summary
from ssl_suite.views import Views

GROUPS = ("name", "seed", "model", "adapter", "checkpoint", "data", "backbone", "backbones", "optimizer", "schedule",
          "trainer", "stream", "root", "trusted_packages")


class Deployed(nn.Module):
    """A trained classifier as a plain function of standardised samples: what an Adapter takes.

    Args:
        method: a trained method with `logits`; copied, without its views and its trainer.
    """

    def __init__(self, method: Method) -> None:
        super().__init__()
        self.method = copy.deepcopy(method, {id(method.views): Views(), id(method._trainer): None}).eval()

    def forward(self, x: Tensor, length: Tensor | None = None) -> Tensor:
        """Logits (B, K) of standardised samples (B, ...)."""
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


def adapter_factory(config: dict[str, Any], run: Run) -> Callable[..., Adapter]:
    """What makes the configured adapter of a model of a run.

    Raises:
        ConfigError: the run predicts no classes.
    """
    if run.method.tags.target != "class":
        raise ConfigError(f"checkpoint={run.folder}: {type(run.method).__name__} predicts no classes, and only "
                          "classifiers are adapted; train one with model=finetune init_from=RUN, or model=supervised")
    with building("adapter"):
        factory = hydra.utils.instantiate(config["adapter"], _partial_=True, _convert_="all")
        takes = inspect.signature(factory.func).parameters
    offers = {"views": copy.deepcopy(run.method.views), "sample_shape": run.spec.shape}
    return partial(factory, **{k: v for k, v in offers.items() if k in takes})


def build_adapter(config: dict[str, Any], run: Run, device: torch.device) -> tuple[Adapter, Deployed]:
    """The adapter and the source model it starts from, on a device.

    Raises:
        ConfigError: the run predicts no classes, or the method cannot adapt it.
    """
    factory, source = adapter_factory(config, run), Deployed(run.method).to(device)
    with building("adapter"):
        return factory(source).to(device), source


def summarise(config: dict[str, Any], run: Run, data: Any, outcomes: list[Outcome], clean: float,
              seconds: float) -> Summary:
    """The summary, in the schema of training runs; errors are shares."""
    adapted, source = scores(outcomes, clean)
    return {"method": name_of(config, "model"), "data": name_of(config, "data") if config["data"] else data_name(run),
            "modality": data.modality, "seed": config["seed"], "commit": commit(), "versions": versions(),
            "wall_seconds": round(seconds, 2),
            "samples_per_second": timed_rate(sum(len(o.adapted) for o in outcomes),
                                             sum(sum(o.adapted_ms) for o in outcomes) / 1000.0),
            "scores": flat(adapted), "references": {"source": flat(source)}}


def data_name(run: Run) -> str:
    """Name of the data a run was trained on."""
    path = run.folder / "summary.json"
    return json.loads(path.read_text())["data"] if path.is_file() else run.config["data"]["_target_"].rsplit(".", 1)[-1]


def deploy(cfg: DictConfig, folder: Path) -> None:
    """Load a run, adapt it along the streams, report."""
    started = time.perf_counter()
    if not cfg.adapter:
        raise ConfigError(f"model={cfg.name} is trained by train.py and does not adapt; choose model=tent or "
                          "model=ttt")
    if not cfg.checkpoint:
        raise ConfigError("checkpoint is missing; give the folder of a trained classifier: checkpoint=runs/...")
    run = load_run(cfg.checkpoint)
    cfg.seed = run.config["seed"] if cfg.seed is None else cfg.seed
    cfg.stream.seed = cfg.seed if cfg.stream.seed is None else cfg.stream.seed
    config = plain(cfg)
    validate({k: v for k, v in config.items() if k not in ("model", "trainer")}, GROUPS, config["trusted_packages"])
    data = build_data(config if config["data"] else {**config, "data": run.config["data"]}, None)
    if (data.modality, data.spec.num_classes) != (run.spec.modality, run.spec.num_classes):
        raise ConfigError(f"data: {data.spec.num_classes} classes of {data.modality}, but the checkpoint was trained "
                          f"on {run.spec.num_classes} classes of {run.spec.modality}")
    use_gpu = config["trainer"]["accelerator"] in ("gpu", "cuda", "auto") and torch.cuda.is_available()
    device = torch.device("cuda" if use_gpu else "cpu")
    with building("stream"):
        streams: ShiftStreams = hydra.utils.instantiate(config["stream"], _convert_="all")
        streams.segments(data, run.spec)
    adapter, source = build_adapter(config, run, device)
    OmegaConf.save(OmegaConf.create(config), folder / "config.yaml")
    clean = clean_error(source, data, run.spec, streams, device)
    calibrate(adapter, data, run.spec, streams, device)
    outcomes = run_streams(adapter, source, data, run.spec, streams, device)
    adapter.save(folder / "adapter.pt")
    (folder / "pictures").mkdir(exist_ok=True)
    draw_stream(folder / "pictures" / "stream.png", outcomes)
    draw_shifts(folder / "pictures" / "shifts.png", data, run.spec, streams)
    write_metrics(folder, outcomes)
    summary = summarise(config, run, data, outcomes, clean, time.perf_counter() - started)
    write_summary(folder, summary)
    report(folder, summary, outcomes, streams.batch_size)
