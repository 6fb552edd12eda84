"""The config tree as the tests see it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import yaml
from hydra import compose, initialize_config_module
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf

import ssl_suite.cli  # noqa: F401  (registers the resolver)
from ssl_suite.batch import Tags
from ssl_suite.catalogue import entries
from ssl_suite.config import locate
from ssl_suite.run import backbone_config, build_backbone, build_data, build_method
from ssl_suite.testing import Case

CONFIGS = Path(__file__).resolve().parents[1] / "configs"


def names(group: str) -> list[str]:
    """Choices of a config group."""
    return sorted(p.stem for p in (CONFIGS / group).glob("[a-z]*.yaml"))


def raw(group: str, name: str) -> dict[str, Any]:
    """A config file as it stands, without its defaults."""
    content = yaml.safe_load((CONFIGS / group / f"{name}.yaml").read_text())
    assert isinstance(content, dict)
    return content


def trained() -> list[str]:
    """Methods that are trained."""
    return [name for name in names("model") if raw("model", name).get("model")]


def tags_of(name: str) -> Tags:
    """What a method states of itself."""
    return locate(raw("model", name)["model"]["_target_"], name).tags


def cases() -> list[tuple[str, str]]:
    """Every method that is trained, with each modality its tags name."""
    found = []
    for name in trained():
        found += [(name, modality) for modality in tags_of(name).modalities]
    return found


SCRIPTED = {e.name: e.tags.script for e in entries() if e.tags.script}
"""Methods that a script of their own runs, and no program."""


def in_turn(cases: Sequence[tuple[str, str]]) -> list[Any]:
    """Cases of (config, modality) for the quick tier: one modality of each config, by turns; the others are marked slow."""
    modalities: dict[str, list[str]] = {}
    for name, modality in cases:
        modalities.setdefault(name, []).append(modality)
    quick = {(name, known[i % len(known)]) for i, (name, known) in enumerate(modalities.items())}
    return [pytest.param(*case, marks=() if case in quick else pytest.mark.slow) for case in cases]


def composed(*overrides: str, program: str = "train", folder: str = "unused") -> dict[str, Any]:
    """A composed config as plain containers, as a program would get it."""
    GlobalHydra.instance().clear()
    with initialize_config_module("configs", version_base="1.3"):
        cfg = compose(program, [*overrides, f"hydra.runtime.output_dir={folder}"], return_hydra_config=True)
    HydraConfig.instance().set_config(cfg)
    try:
        OmegaConf.set_struct(cfg, False)
        hydra = cfg.pop("hydra")
        cfg.name = f"{hydra.runtime.choices.get('model')}_{hydra.runtime.choices.get('data')}"
        for name in ("callbacks", "logger") if program == "train" else ():
            cfg[name] = yaml.safe_load(OmegaConf.to_yaml(cfg.get(name)).replace("${hydra:runtime.output_dir}", folder))
        out = OmegaConf.to_container(cfg, resolve=True)
    finally:
        HydraConfig.instance().cfg = None
        GlobalHydra.instance().clear()
    assert isinstance(out, dict)
    return {str(k): v for k, v in out.items()}


@cache
def model_config(name: str) -> dict[str, Any]:
    """The composed config of a method on digits."""
    return composed(f"model={name}", "data=digits")


def case(name: str, modality: Any) -> Case:
    """A method at the size of tests, on data of a modality."""
    cfg = model_config(name)
    return Case(lambda backbone, views, spec: build_method(cfg, backbone, views, spec), tags_of(name), modality)


def built(*overrides: str) -> tuple[Any, Any]:
    """A method and its data, as ``train.py`` with these overrides would build them, from seed 0."""
    cfg = composed(*overrides)
    L.seed_everything(0, verbose=False)
    tags = locate(cfg["model"]["_target_"], "model").tags
    data = build_data(cfg, tags)
    return build_method(cfg, build_backbone(backbone_config(cfg, tags.backbone), data.spec), data.views, data.spec), data
