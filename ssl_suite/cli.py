"""Programs: a Hydra main whose user mistakes end in one message instead of a page of traceback."""

from __future__ import annotations

import contextlib
import difflib
import logging
import os
import re
import signal
import sys
import warnings
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NoReturn

import hydra
from hydra import compose, initialize_config_module
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from lightning.pytorch.utilities.exceptions import SIGTERMException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from rich.console import Console
from rich.markup import escape

from ssl_suite.config import ConfigError, nearest
from ssl_suite.devices import native_precision


def run_folder(root: str, name: str, resume: str | None) -> str:
    """Folder of a run: a new one named by the time, or the one that is taken up again.

    Args:
        root: folder of all runs.
        name: method and data.
        resume: a run folder, ``auto`` for the newest run of that name with a checkpoint, or None.
    """
    if resume and resume != "auto":
        return resume
    if resume == "auto":
        runs = [p for p in Path(root, name).glob("*") if any((p / "checkpoints").glob("*.ckpt"))]
        if runs:
            return str(max(runs, key=lambda p: p.name))
    return str(Path(root, name, started()))


def started() -> str:
    """The time that names a new run; under ``torchrun`` that of whichever process came first, on all nodes."""
    now = datetime.now().strftime("%Y-%m-%d_%H-%M-%S-%f")[:-3]
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return now
    from torch.distributed import TCPStore

    store = TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False)
    return store.compare_set("ssl_suite/started", "", now).decode()


OmegaConf.register_new_resolver("run_folder", run_folder, use_cache=True, replace=True)
OmegaConf.register_new_resolver("native_precision", native_precision, replace=True)
OmegaConf.clear_resolver("oc.env")  # a config, which is saved with the run, cannot read secrets from the environment


def program(config_name: str, task: Callable[[DictConfig, Path], float | None]) -> Callable[[], None]:
    """A command-line program over one of the suite's root configs.

    Args:
        config_name: ``train`` or ``adapt``.
        task: gets the composed config and the run folder; returns the score a sweep maximises, or None.
    """

    def job(cfg: DictConfig) -> float | None:
        quiet()
        folder = Path(HydraConfig.get().runtime.output_dir)
        try:
            return task(cfg, folder.relative_to(Path.cwd()) if folder.is_relative_to(Path.cwd()) else folder)
        except (ConfigError, OmegaConfBaseException) as error:
            remove_empty(folder, cfg.name)
            if os.environ["HYDRA_FULL_ERROR"] == "full" or not isinstance(error, ConfigError):
                raise
            stop(str(error), 1)

    def main() -> None:
        traceback = os.environ.setdefault("HYDRA_FULL_ERROR", "1") == "full"
        if str(Path.cwd()) not in sys.path:
            sys.path.insert(0, str(Path.cwd()))
        try:
            hydra.main(version_base="1.3", config_path="pkg://configs", config_name=config_name)(job)()
        except KeyboardInterrupt:
            stop("stopped by the user; take it up again with resume=auto", 130)
        except SIGTERMException:
            stop("terminated; take it up again with resume=auto", 128 + signal.SIGTERM)
        except (HydraException, OmegaConfBaseException) as error:
            if traceback:
                raise
            stop(explain(error, config_name, sys.argv[1:]), 1)
        except ValueError as error:
            if traceback or "Config group override must be" not in str(error):
                raise
            empty = next((o.split("=")[0] for o in sys.argv[1:] if o.endswith("=null")), "GROUP")
            stop(f"{empty}=null: a group needs a choice; leave it out with ~{empty}", 1)

    return main


def quiet() -> None:
    """Keep the libraries' notices out of what the user reads; warnings of the suite itself stay, without a line of its source."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    for text in (".*LeafSpec.*", ".*does not have many workers.*", ".*logging interval.*", ".*sync_dist=True.*",
                 ".*Checkpoint directory .* exists.*", ".*dataloader is not resumable.*", ".*TF32.*",
                 ".*DataLoader` across ranks is zero.*", ".*in eval mode at the start of training.*"):
        warnings.filterwarnings("ignore", text)
    warnings.formatwarning = lambda message, *_, **__: f"warning: {message}\n"


def remove_empty(folder: Path, name: str) -> None:
    """Remove the folder of a run that never began, and those above it that were made for it alone."""
    made = (folder, folder.parent, folder.parent.parent) if folder.parent.name == name else (folder,)
    with contextlib.suppress(OSError):
        for place in made:
            place.rmdir()


def stop(message: str, code: int) -> NoReturn:
    """Print one message to the error stream and end the program."""
    Console(stderr=True, soft_wrap=True, highlight=False).print(f"[bold red]error:[/] {escape(message)}")
    sys.exit(code)


def explain(error: Exception, config_name: str, overrides: Sequence[str]) -> str:
    """A configuration error in one line, with the nearest valid name."""
    text = str(error).strip()
    if isinstance(error, OverrideParseException):
        name = error.override.partition("=")[0]
        return f"cannot read {error.override}: a value with =, brackets, commas, spaces needs its own quotes: '{name}=\"VALUE\"'"
    if isinstance(error, MissingConfigException):
        wanted = re.search(r"Could not find '([^']*)/([^'/]+)'", text)
        options = getattr(error, "options", None)
        if wanted and options:
            return f"{wanted[1]}={wanted[2]}: no such {wanted[1]}{nearest(wanted[2], set(options))}"
        wanted = re.search(r"Could not find '([^']+)'", text)
        if wanted and "/" not in wanted[1]:
            return f"unknown key '{wanted[1]}'{nearest(wanted[1], {k.split('.')[0] for k in known_keys(config_name, overrides)})}"
        return text
    key = re.search(r"Could not override '([^']+)'", text)
    if key:
        keys = known_keys(config_name, overrides)
        beside = {k for k in keys if k.rpartition(".")[0] == key[1].rpartition(".")[0]} or {k.split(".")[0] for k in keys}
        return f"unknown key '{key[1]}'{nearest(key[1], keys if difflib.get_close_matches(key[1], keys) else beside)}"
    return text.splitlines()[0] if text else repr(error)


def known_keys(config_name: str, overrides: Sequence[str]) -> set[str]:
    """Every dotted key of the program's config, with the groups chosen on the command line."""
    GlobalHydra.instance().clear()
    chosen = [o for o in overrides if re.fullmatch(r"[a-z_/]+=[\w-]+", o)]
    with initialize_config_module("configs", version_base="1.3"):
        for attempt in (chosen, []):
            try:
                return set(dotted(OmegaConf.to_container(compose(config_name, attempt), resolve=False)))
            except (HydraException, OmegaConfBaseException):
                continue
    return set()


def dotted(node: Any, where: str = "") -> list[str]:
    """Dotted names of all keys of nested mappings."""
    if not isinstance(node, dict):
        return []
    here = [f"{where}{key}" for key in node]
    return here + [name for key, value in node.items() for name in dotted(value, f"{where}{key}.")]
