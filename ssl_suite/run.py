"""From a composed config to a finished run folder; shared by every program that trains, judges or loads."""

from __future__ import annotations

import inspect
import math
import shlex
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hydra
import lightning as L
import numpy as np
import torch
from hydra.core.hydra_config import HydraConfig
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities import rank_zero_warn
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from torch import nn

from ssl_suite.batch import Spec, Tags
from ssl_suite.callbacks.pictures import Pictures
from ssl_suite.callbacks.resume import ResumeState
from ssl_suite.config import ConfigError, check_target, nearest, refuse_scripted, validate
from ssl_suite.devices import keep_freed_memory
from ssl_suite.evaluation import dtw_score, judge, raw_features
from ssl_suite.io.checkpoints import AtomicCheckpointIO, newest_checkpoint, whole_file
from ssl_suite.io.weights import load_backbone, read_description, save_backbone
from ssl_suite.method import Method
from ssl_suite.nn.blocks import checkpoint_blocks, compile_networks
from ssl_suite.nn.sharding import is_sharded, whole_state
from ssl_suite.summary import Summary, commit, flat, print_summary, timed_rate, versions, write_summary

GROUPS = ("name", "seed", "model", "adapter", "data", "backbone", "backbones", "optimizer", "schedule", "trainer", "callbacks",
          "logger", "evaluation", "init_from", "resume", "root", "trusted_packages", "objective", "compile",
          "activation_checkpointing")
MOVABLE = ("data.num_workers", "data.path")
"""Settings of the data that may change when a run is taken up again elsewhere."""


@contextmanager
def building(what: str) -> Iterator[None]:
    """Errors while building are the user's: told in one message, with the cause and without the traceback."""
    try:
        yield
    except hydra.errors.InstantiationException as error:
        cause = error.__cause__ or error
        raise ConfigError(f"{what}: {str(cause).strip().splitlines()[0]}") from error
    except ConfigError:
        raise
    except (ValueError, FileNotFoundError, ImportError, KeyError, MisconfigurationException) as error:
        raise ConfigError(f"{what}: {error.args[0] if error.args else error}") from error


def plain(cfg: DictConfig) -> dict[str, Any]:
    """The config as plain containers, interpolations resolved.

    Raises:
        ConfigError: a value that has no default was not given.
    """
    missing = sorted(OmegaConf.missing_keys(cfg))
    if missing:
        raise ConfigError(f"{missing[0]} has no default; give it: {missing[0]}=...")
    container = OmegaConf.to_container(cfg, resolve=True)
    assert isinstance(container, dict)
    return {str(key): value for key, value in container.items()}


def build_data(cfg: dict[str, Any], tags: Tags | None) -> Any:
    """The data module, read and split, in the form the method needs."""
    with building("data"):
        data = hydra.utils.instantiate(cfg["data"], _convert_="all")
        if tags is not None:
            if data.modality not in tags.modalities:
                raise ConfigError(f"this method works on {', '.join(tags.modalities)}, but data={cfg['name'].split('_')[-1]} "
                                  f"are {data.modality}")
            data.form = tags.batch
        data.prepare_data()
        data.setup("fit")
    by_class = tags is not None and (tags.target == "class" or (tags.batch == "labeled" and tags.target is None))
    if by_class and (data.spec.masks or not data.spec.num_classes):
        raise ConfigError("this method needs class labels, but the data have none")
    if tags is not None and tags.target == "text" and not data.spec.vocabulary:
        raise ConfigError("this method needs transcripts, but the data have none")
    if tags is not None and tags.target == "action" and not data.spec.actions:
        raise ConfigError("this method needs actions, but the data have none; take data=point_reach")
    if tags is not None and tags.target == "mask" and not data.spec.masks:
        raise ConfigError("this method needs masks, but the data have none; take data=segmentation_arrays or segmentation_folder")
    if tags is not None and tags.joint_embedding and data.frames is None and data.batch_size < 2:
        raise ConfigError(f"data.batch_size={data.batch_size}: this method tells the samples of a batch apart; give it two or more")
    train = data.parts["train"][1]
    if tags is not None and tags.batch == "semi" and not len(np.setdiff1d(train, data.labeled)):
        rank_zero_warn(f"all {len(train)} training samples are labelled, so the unlabelled batches are drawn from them alone; keep "
                       "few labels with data.labels_per_class=4 or data.labels=0.0625, or take a supervised method")
    return data


def refuse_other_samples(found: Spec, built: Spec) -> None:
    """Refuse samples that a network was not built for.

    Raises:
        ConfigError: another modality, number of channels, or size of pictures; lengths may differ.
    """
    fixed = slice(None) if built.modality == "images" else slice(0, -1)
    if found.modality != built.modality or found.shape[fixed] != built.shape[fixed]:
        raise ConfigError(f"data: the network was built for {built.modality} of shape {built.shape}, these are {found.modality} of "
                          f"shape {found.shape}; take the data of its run, or bring these to that shape (pictures: data.size)")


def backbone_config(cfg: dict[str, Any], kind: str) -> dict[str, Any]:
    """The backbone named on the command line, or the one the data config offers for this kind of method."""
    if cfg.get("backbone"):
        return cfg["backbone"]
    offered = cfg.get("backbones") or {}
    if kind not in offered:
        raise ConfigError(f"these data name no backbone of the kind '{kind}' (there are {', '.join(offered) or 'none'}); "
                          "choose one with backbone=...")
    return offered[kind]


def build_backbone(config: dict[str, Any], spec: Spec) -> nn.Module:
    """A backbone for samples of a spec."""
    with building("backbone"):
        return hydra.utils.instantiate(config, _partial_=True, _convert_="all")(spec=spec)


def filled(node: Any, numbers: dict[str, int], packages: Sequence[str]) -> Any:
    """A part of the config whose objects, at any depth, get those numbers that their constructors ask for.

    Args:
        node: a mapping or a value.
        numbers: what the data settle, as argument -> value; a larger one in the config goes first.
        packages: packages that targets may come from besides the suite's own.

    Raises:
        ConfigError: a number in the config is smaller than what the data hold.
    """
    if not isinstance(node, dict):
        return node
    given: dict[str, int] = {}
    if "_target_" in node:
        names = inspect.signature(check_target(node["_target_"], "model", packages)).parameters
        given = {name: value for name, value in numbers.items() if name in names}
    for name, least in given.items():
        if isinstance(number := node.get(name), int) and number < least:
            raise ConfigError(f"{name}={number} of {node['_target_'].rsplit('.', 1)[-1]} is less than the {least} of these data; "
                              "leave it out, it is taken from the data")
    return {**given, **{key: filled(value, numbers, packages) for key, value in node.items()}}


def build_method(cfg: dict[str, Any], backbone: nn.Module, views: nn.Module, spec: Spec) -> Method:
    """The method, given what its constructor asks for."""
    packages = cfg.get("trusted_packages", "objective") or ()
    target = check_target(cfg["model"]["_target_"], "model._target_", packages)
    model = filled(cfg["model"], {"num_classes": spec.num_classes, "num_samples": spec.num_samples}, packages)
    offers, names = {"vocabulary": spec.vocabulary, "spec": spec}, inspect.signature(target).parameters
    given = {name: value for name, value in offers.items() if name in names and name not in cfg["model"]}
    kind = target.tags.backbone
    kinds = {"tokens": "patches", "maps": "maps", "waveform": "contextualise"}
    needs = "token_lengths" if target.tags.target == "text" else kinds.get(kind)
    if needs and not hasattr(backbone, needs):
        raise ConfigError(f"{target.__name__} needs a backbone of the kind '{kind}', and {type(backbone).__name__} is none; "
                          "leave backbone unset to take the data's own choice")
    with building("model"):
        optimizer = hydra.utils.instantiate(cfg["optimizer"], _partial_=True, _convert_="all")
        schedule = hydra.utils.instantiate(cfg["schedule"], _convert_="all")
        make = hydra.utils.instantiate(model, _partial_=True, _convert_="all")
        return make(backbone=backbone, views=views, optimizer=optimizer, schedule=schedule, **given)


def start_weights(method: Method, source: str | None) -> str | None:
    """Load ``init_from`` into the backbone and what was copied from it; returns what was mapped."""
    if not source:
        return None
    with building("init_from"):
        report = load_backbone(method.backbone, Path(source))
    for teacher, student in method.teachers.items():
        getattr(method, teacher).load_state_dict(getattr(method, student).state_dict())
    return str(report)


def set_switches(method: Method, cfg: dict[str, Any]) -> None:
    """Compile the networks and checkpoint their activations where the config says so; older configs do not."""
    if cfg.get("activation_checkpointing"):
        with building("activation_checkpointing"):
            checkpoint_blocks(method)
    if cfg.get("compile"):
        compile_networks(method)


@dataclass
class Run:
    """A finished (or saved) run, loaded.

    Attributes:
        folder: the run folder.
        config: its configuration.
        spec: what its data look like.
        method: the method with its trained weights, in evaluation mode.
    """

    folder: Path
    config: dict[str, Any]
    spec: Spec
    method: Method


def load_run(folder: str | Path) -> Run:
    """Load a run folder: its config, the description of its data, and the newest undamaged weights.

    Raises:
        ConfigError: the folder is not a run, or nothing in it can be loaded.
    """
    folder = Path(folder)
    if not (folder / "config.yaml").is_file():
        raise ConfigError(f"{folder} is not a run folder: it holds no config.yaml")
    config = plain(OmegaConf.load(folder / "config.yaml"))  # type: ignore[arg-type]
    validate(config, GROUPS, config.get("trusted_packages", "objective") or ())
    with building(str(folder)):
        checkpoint = AtomicCheckpointIO().load_checkpoint(newest_checkpoint(folder))
        spec = Spec.from_dict(checkpoint["spec"])
        data = hydra.utils.instantiate(config["data"], _convert_="all")
        target = check_target(config["model"]["_target_"], "model._target_", config.get("trusted_packages", "objective") or ())
        backbone = build_backbone(backbone_config(config, target.tags.backbone), spec)
        method = build_method(config, backbone, data.views.standardise(spec), spec)
        method.load_state_dict(checkpoint["state_dict"])
    return Run(folder, config, spec, method.eval())


def load_exported(path: str | Path) -> tuple[nn.Module, Spec]:
    """The backbone of a ``backbone.safetensors``, built from the description inside and loaded strictly."""
    path = Path(path)
    path = path / "backbone.safetensors" if path.is_dir() else path
    with building(str(path)):
        spec, config = read_description(path)
        backbone = build_backbone(config, spec)
        load_backbone(backbone, path)
    return backbone.eval(), spec


class SpecInCheckpoint(L.Callback):
    """Keeps the description of the data in every checkpoint, so that a run can be loaded without its data."""

    def __init__(self, spec: Spec) -> None:
        self.spec = spec

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        checkpoint["spec"] = self.spec.to_dict()


def build_trainer(cfg: dict[str, Any], folder: Path, spec: Spec) -> L.Trainer:
    """The trainer with callbacks, loggers and the safe checkpoint writer; on a CPU the process keeps the memory it frees."""
    if str(cfg["trainer"].get("precision")).startswith("16"):
        raise ConfigError(f"trainer.precision={cfg['trainer']['precision']}: float16 leaves out steps whose gradients overflow, "
                          "and teachers and schedules would move all the same; use bf16-mixed")
    with building("trainer"):
        callbacks = [hydra.utils.instantiate(c, _convert_="all") for c in (cfg["callbacks"] or {}).values() if c]
        loggers = [hydra.utils.instantiate(c, _convert_="all") for c in (cfg["logger"] or {}).values() if c]
        make = hydra.utils.instantiate(cfg["trainer"], _partial_=True, _convert_="all")
        trainer = make(callbacks=[*callbacks, SpecInCheckpoint(spec)], logger=loggers, plugins=[AtomicCheckpointIO()],
                       default_root_dir=str(folder))
    if trainer.strategy.root_device.type == "cpu":
        keep_freed_memory()
    return trainer


def folder_keys(node: Any, where: str = "") -> list[str]:
    """Dotted names of the values that are made from the run folder."""
    if isinstance(node, dict):
        return [key for name, value in node.items() for key in folder_keys(value, f"{where}.{name}" if where else str(name))]
    return [where] if isinstance(node, str) and "${hydra:runtime.output_dir}" in node else []


def resumed_config(cfg: DictConfig, folder: Path) -> dict[str, Any]:
    """The config of a run that is taken up again: its own, with the values given on the command line on top."""
    saved = OmegaConf.load(folder / "config.yaml")
    given = [o for o in HydraConfig.get().overrides.task if "." in o.split("=")[0]]
    merged = OmegaConf.merge(saved, OmegaConf.from_dotlist([o.lstrip("+") for o in given]))
    check_same_run(plain(saved), plain(merged))  # type: ignore[arg-type]
    for key in folder_keys(OmegaConf.to_container(cfg, resolve=False)):
        if OmegaConf.select(merged, key) is not None:  # the folder may have been moved or copied since
            OmegaConf.update(merged, key, OmegaConf.select(cfg, key))
    return {**plain(merged), "resume": cfg.resume}  # type: ignore[arg-type]


def check_same_run(saved: dict[str, Any], given: dict[str, Any]) -> None:
    """Say which settings of a run that is taken up again have changed.

    Raises:
        ConfigError: one of them would make another run of it: model, optimizer, schedule, seed or data.
    """
    old, new = leaves(saved), leaves(given)
    for key in sorted(new):
        if str(old.get(key)) == str(new[key]) or key.split(".")[0] in ("resume", "root", "name"):
            continue
        if key.split(".")[0] in ("model", "backbone", "backbones", "optimizer", "schedule", "seed", "data") and key not in MOVABLE:
            raise ConfigError(f"resume: {key} was {old.get(key)} and cannot become {new[key]} within a run; leave it out, or start "
                              "a new run")
        rank_zero_warn(f"resume: {key} was {old.get(key)} and is {new[key]} from here on")


def leaves(node: Any, where: str = "") -> dict[str, Any]:
    """Values of nested mappings by their dotted names."""
    if not isinstance(node, dict):
        return {where: node}
    return {key: value for name, child in node.items()
            for key, value in leaves(child, f"{where}.{name}" if where else str(name)).items()}


def save_config(config: dict[str, Any], folder: Path) -> None:
    """Write ``config.yaml`` and, when a program runs, ``command.txt``: what was typed, a line for the start and each resumption."""
    OmegaConf.save(OmegaConf.create(config), folder / "config.yaml")
    if HydraConfig.initialized():
        hydra_config = HydraConfig.get()
        own = [f"--config-dir={source.path}" for source in hydra_config.runtime.config_sources if source.provider == "command-line"]
        with (folder / "command.txt").open("a") as file:
            file.write(shlex.join(["python", f"{hydra_config.job.config_name}.py", *own, *hydra_config.overrides.task]) + "\n")


def save_split(data: Any, folder: Path) -> None:
    """Write ``split.npz``: which samples the run trains on, validates and is judged on."""
    with whole_file(folder / "split.npz") as file:
        np.savez_compressed(file, **data.split())


def announce(cfg: dict[str, Any], method: Method, data: Any, trainer: L.Trainer, folder: Path, mapped: str | None) -> None:
    """One line of what will run, and one of the weights it starts from."""
    params = sum(p.numel() for p in method.parameters() if p.requires_grad)
    train = len(data.parts["train"][1])
    few = f" ({len(data.labeled)} labelled)" if data.form != "unlabeled" and len(data.labeled) < train else ""
    device = f"{trainer.num_devices} x {trainer.strategy.root_device.type}"
    Console(soft_wrap=True).print(
        f"[bold]{cfg['name']}[/]: {type(method).__name__} · {train} {data.modality}{few} · {type(method.backbone).__name__} · "
        f"{params / 1e6:.2f} M parameters · {device} · {trainer.precision} · {folder}")
    if mapped:
        Console(soft_wrap=True).print(f"init_from: {mapped}")


def refuse_untrained(config: dict[str, Any]) -> None:
    """Refuse a method that has nothing to train; ConfigError with the command that runs it."""
    if not config.get("model"):
        refuse_scripted(config)
        raise ConfigError(f"{config['name']}: this method adapts a trained model; "
                          "run: python adapt.py model=... checkpoint=RUN")


def fit(cfg: DictConfig, folder: Path) -> float | None:
    """Train, judge, save: everything behind ``train.py``."""
    started = time.perf_counter()
    resuming = cfg.resume is not None and (folder / "config.yaml").is_file()
    if cfg.resume not in (None, "auto") and not resuming:
        raise ConfigError(f"resume={cfg.resume}: {folder} holds no config.yaml; give a run folder, or resume=auto")
    config = resumed_config(cfg, folder) if resuming else plain(cfg)
    refuse_untrained(config)
    packages = config.get("trusted_packages", "objective") or ()
    validate(config, GROUPS, packages)
    if resuming and (folder / "summary.json").is_file():
        Console(soft_wrap=True).print(f"{folder} is already complete; nothing to do")
        return None
    L.seed_everything(config["seed"], workers=True, verbose=False)
    tags: Tags = check_target(config["model"]["_target_"], "model._target_", packages).tags
    data = build_data(config, tags)
    chosen = backbone_config(config, tags.backbone)
    backbone = build_backbone(chosen, data.spec)
    reference = {name: value.clone() for name, value in backbone.state_dict().items()}
    method = build_method(config, backbone, data.views, data.spec)
    mapped = start_weights(method, config["init_from"])
    set_switches(method, config)
    trainer = build_trainer(config, folder, data.spec)
    if trainer.is_global_zero:
        save_config(config, folder)
        save_split(data, folder)
        announce(config, method, data, trainer, folder, mapped)
    first = time.perf_counter()
    trainer.fit(method, datamodule=data, ckpt_path=resume_point(folder) if resuming else None)
    seconds = time.perf_counter() - first
    state = next((c for c in trainer.callbacks if isinstance(c, ResumeState)), ResumeState())  # type: ignore[attr-defined]
    logged = {**state.metrics, **{name: float(value) for name, value in trainer.callback_metrics.items()}}
    results = trainer.test(method, datamodule=data, verbose=False) if "test" in data.parts else [{}]
    method = whole(method, config, chosen, data, trainer)
    if not trainer.is_global_zero:
        return None
    save_backbone(folder / "backbone.safetensors", method.encoder, data.spec, chosen)
    scores, references = judge_all(config, method, data, chosen, reference)
    # A class that is nowhere in the set has no IoU.
    own = {name.removeprefix("test/"): value for name, value in results[0].items() if not math.isnan(value)}
    scores = {**own, **scores} or {"loss": logged.get("train/loss", 0.0)}
    samples = (trainer.global_step - state.first_step) * trainer.accumulate_grad_batches * batch_samples(data) * trainer.world_size
    summary: Summary = {
        "method": name_of(config, "model"), "data": name_of(config, "data"), "modality": data.modality,
        "seed": config["seed"], "commit": commit(), "versions": versions(), "data_wait": logged.get("train/data_wait"),
        "wall_seconds": round(time.perf_counter() - started, 2), "samples_per_second": timed_rate(samples, seconds),
        "scores": flat(scores), "references": {name: flat(values) for name, values in references.items()}}
    write_summary(folder, summary)
    print_summary(folder, summary, next_commands(tags, folder, typed_data(summary["data"])))
    return objective(config, summary["scores"])


def whole(method: Method, config: dict[str, Any], chosen: dict[str, Any], data: Any, trainer: L.Trainer) -> Method:
    """The method with its weights in one place, on the first process; where they were spread, the pictures come now.

    All processes must call it.
    """
    if not is_sharded(method):
        return method
    weights = whole_state(method)
    if trainer.is_global_zero:
        method = build_method(config, build_backbone(chosen, data.spec), data.views, data.spec).cpu()
        method.load_state_dict(weights)
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, Pictures):
                callback.draw(method, data)
    return method


def objective(config: dict[str, Any], scores: dict[str, float]) -> float | None:
    """The score that a sweep maximises, where one is named.

    Raises:
        ConfigError: the run has no such score.
    """
    name = config.get("objective")
    if name is not None and name not in scores:
        raise ConfigError(f"objective={name} is none of this run's scores{nearest(name, set(scores))}")
    return scores.get(name or "")


def name_of(config: dict[str, Any], group: str) -> str:
    """Name a run was started under: the choice in the config group, or the class."""
    choices = HydraConfig.get().runtime.choices if HydraConfig.initialized() else {}
    return str(choices.get(group) or (config[group] or config["adapter"])["_target_"].rsplit(".", 1)[-1])


def resume_point(folder: Path) -> str | None:
    """The checkpoint to go on from, or None when the run died before its first."""
    try:
        return str(newest_checkpoint(folder))
    except FileNotFoundError:
        return None


def batch_samples(data: Any) -> int:
    """Samples of one training batch of one process; for batches by length, their mean."""
    if data.frames is not None:
        return max(1, len(data.parts["train"][1]) // max(1, len(data.train_dataloader())))
    return data.batch_size * (1 + data.mu) if data.form == "semi" else data.batch_size


def judge_all(config: dict[str, Any], method: Method, data: Any, chosen: dict[str, Any],
              reference: dict[str, torch.Tensor]) -> tuple[dict[str, float], dict[str, dict[str, float]]]:
    """Probe scores of the trained encoder, of the backbone before training, and of the raw data."""
    references: dict[str, dict[str, float]] = {"untrained": {}, "raw": {}}
    if data.parts["train"][0].targets is None or "test" not in data.parts or not config["evaluation"]["probes"]:
        return {}, references
    seed, samples, svm = config["seed"], config["evaluation"]["max_samples"], config["evaluation"].get("svm", False)
    scores = judge(method.eval(), data, seed, samples, method.device, "probing the trained backbone", svm)
    untrained = build_backbone(chosen, data.spec)
    untrained.load_state_dict(reference)
    untrained.eval()
    references["untrained"] = judge(lambda batch: untrained(data.views.cpu()(batch, "clean")[0], batch.get("length")), data, seed,
                                    samples, title="probing the untrained backbone", svm=svm)
    references["raw"] = judge(raw_features(data.spec), data, seed, samples, title="probing the raw data", svm=svm)
    if config["evaluation"].get("dtw", False) and data.modality == "series":
        references["raw"]["dtw"] = dtw_score(data, samples)
    return scores, references


def typed_data(name: str) -> str:
    """``data=NAME`` and what else of the data was typed, as a next command needs it: all but the size of batches."""
    typed = HydraConfig.get().overrides.task if HydraConfig.initialized() else []
    kept = (o for o in typed if o.lstrip("+~").startswith("data.") and not o.startswith("data.batch_size="))
    return shlex.join([f"data={name}", *kept])


def next_commands(tags: Tags, folder: Path, data: str) -> list[str]:
    """What a user may want to type after a run, on the data of these overrides."""
    if tags.target == "class":
        return [f"python adapt.py model=tent checkpoint={folder}", f"python scripts/export.py {folder}"]
    if tags.target in ("text", "mask"):
        return [f"python scripts/evaluate.py {folder} --protocol test", f"python scripts/export.py {folder}"]
    if tags.target == "action":
        return [f"python scripts/export.py {folder}"]
    if tags.task == "pretraining" and tags.backbone == "waveform":
        return [f"python train.py model=ctc {data} init_from={folder}"]
    few = "" if "data.labels_per_class=" in data else " data.labels_per_class=4"
    return [f"python train.py model=finetune {data} init_from={folder}{few}", f"python scripts/export.py {folder}"]
