"""The config tree as the tests see it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra import compose, initialize_config_module
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf

import ssl_suite.cli  # noqa: F401  (registers the resolver)
from ssl_suite.catalogue import entries
from ssl_suite.config import locate

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


def cases() -> list[tuple[str, str]]:
    """Every method that is trained, with each modality its tags name."""
    found = []
    for name in trained():
        tags = locate(raw("model", name)["model"]["_target_"], name).tags
        found += [(name, modality) for modality in tags.modalities]
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
