"""The config tree as the tests see it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from hydra import compose, initialize_config_module
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf

import ssl_suite.cli  # noqa: F401  (registers the resolver)
from ssl_suite.catalogue import entries

CONFIGS = Path(__file__).resolve().parents[1] / "configs"


def names(group: str) -> list[str]:
    """Choices of a config group."""
    return sorted(p.stem for p in (CONFIGS / group).glob("[a-z]*.yaml"))


SCRIPTED = {e.name: e.tags.script for e in entries() if e.tags.script}
"""Methods that a script of their own runs, and no program."""


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
