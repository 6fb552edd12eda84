"""Checks before anything is built: unknown keys, arguments that no constructor takes, targets that must not be called.

Hydra refuses an unknown key on the command line, but an experiment file with a misspelt key composes silently and a misspelt
constructor argument fails only after the data were read. `validate` finds both first and names the nearest valid word.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import pkgutil
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

ALLOWED_PACKAGES = ("ssl_suite", "datamodules", "torch", "torchvision", "torchaudio", "timm", "lightning", "lightly", "functools")
OWN_PACKAGES = ("ssl_suite", "datamodules")
BLOCKED_MODULES = ("torch.package", "torch.hub", "torch.serialization", "torch.utils.cpp_extension", "torch.distributed")
BUILT_LATER = {"backbone", "views", "optimizer", "schedule", "num_classes", "num_samples", "vocabulary", "spec", "sample_shape",
               "params", "model", "trusted"}
"""Arguments that the builder passes itself, so that a config need not."""

ONE = ("model", "adapter", "data", "backbone", "optimizer", "schedule", "trainer", "stream", "network")
"""Groups that hold one object."""
MANY: dict[str, tuple[str, ...]] = {"backbones": ("features", "tokens", "maps", "waveform"), "callbacks": (), "logger": ()}
"""Groups that hold several objects, and their names where those are fixed."""
VIEW_KINDS = ("clean", "weak", "strong", "crop", "local")
HYDRA_KEYS = ("_target_", "_partial_", "_args_", "_convert_", "_recursive_")
SETTINGS: dict[str, Any] = {
    "name": str, "seed": int, "root": str, "trusted_packages": list[str], "init_from": str | None, "resume": str | None,
    "compile": bool, "activation_checkpointing": bool, "objective": str | None, "checkpoint": str | None, "weights": str | None,
    "evaluation.probes": bool, "evaluation.svm": bool, "evaluation.dtw": bool, "evaluation.max_samples": int | None}
"""Keys that no constructor takes, with the type of each."""

STACK = '"torch>=2.11,<2.13" "torchvision>=0.26,<0.28" "torchaudio>=2.11,<2.12"'


class ConfigError(ValueError):
    """A mistake of the user, told in one message: what is wrong, the value, the remedy."""


def require(module: str, extra: str) -> Any:
    """Import an optional package.

    Args:
        module: name to import.
        extra: extra of this project that brings it.

    Raises:
        ImportError: the package is missing; the message says which install brings it.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(f'{module} is needed here and cannot be imported ({error}); pip install "ssl-suite[{extra}]"') from error


def check_stack() -> None:
    """Import torchvision once, so that a build that does not match torch is told in one sentence.

    Raises:
        ImportError: torch and torchvision come from different builds.
    """
    try:
        importlib.import_module("torchvision")
    except (ImportError, RuntimeError, OSError) as error:
        torch = importlib.import_module("torch")
        raise ImportError(f"torch {torch.__version__} and the installed torchvision do not belong together "
                          f"({str(error).splitlines()[0]}); install a matched trio: pip install {STACK}") from error


def nearest(word: str, words: Sequence[str] | set[str]) -> str:
    """A hint ``; did you mean 'x'?``, or the valid words when none is near."""
    close = difflib.get_close_matches(word, sorted(words), n=1, cutoff=0.6 if len(word) > 3 else 0.5)
    return f"; did you mean '{close[0]}'?" if close else f"; valid here: {', '.join(sorted(words)) or 'nothing'}"


def locate(target: str, where: str) -> Any:
    """The class or function a dotted path names.

    Raises:
        ConfigError: nothing of that name exists.
    """
    parts = target.split(".")
    for cut in range(len(parts) - 1, 0, -1):
        name = ".".join(parts[:cut])
        try:
            found = importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name and name != error.name and not name.startswith(f"{error.name}."):
                raise ConfigError(f"{where}: {target} needs {error.name}, which is not installed") from error
            continue
        for part in parts[cut:]:
            if not hasattr(found, part):
                modules = pkgutil.iter_modules(getattr(found, "__path__", []))
                there = {n for n in dir(found) if n[0] != "_"} | {m.name for m in modules}
                raise ConfigError(f"{where}: {name} has no '{part}'{nearest(part, there)}")
            found = getattr(found, part)
        return found
    raise ConfigError(f"{where}: there is no module '{target}'; is its folder on PYTHONPATH?")


def check_target(target: str, where: str, packages: Sequence[str] = ()) -> Any:
    """Locate a target that a config may call.

    Args:
        target: dotted path.
        where: key in the config, for the message.
        packages: top-level packages allowed besides the suite's own.

    Raises:
        ConfigError: the target does not exist, comes from outside the allowed packages (also where one of them merely
            imported it), or is a function of a library; that is how libraries load code and weights.
    """
    allowed, top = (*ALLOWED_PACKAGES, *packages), target.split(".")[0]
    if top not in allowed:
        near = difflib.get_close_matches(top, allowed, n=1)
        hint = f"did you mean '{near[0]}'? or" if near else f"they are {', '.join(allowed)};"
        raise ConfigError(f"{where}: {target} lies outside the packages a config may call; {hint} add your own with "
                          f"trusted_packages=[{top}]")
    found = locate(target, where)
    home = str(getattr(found, "__module__", ""))
    blocked = any(f"{home}.".startswith(f"{b}.") for b in BLOCKED_MODULES)
    named = inspect.isclass(found) or home.split(".")[0] in (*OWN_PACKAGES, *packages)
    if not callable(found) or home.split(".")[0] not in allowed or blocked or not named:
        raise ConfigError(f"{where}: {target} may not be called from a config; allowed are classes of {', '.join(allowed)}, "
                          "and functions of your own trusted_packages")
    return found


def arguments(target: Any) -> tuple[dict[str, Any], set[str], bool]:
    """What can be passed to a callable by keyword.

    Returns:
        Annotation of each name, the names without default, and whether any further name is taken.
    """
    owners = target.__mro__ if inspect.isclass(target) else ()
    chain: list[Any] = [vars(c)["__init__"] for c in owners if "__init__" in vars(c)] or [target]
    known: dict[str, Any] = {}
    needed: set[str] = set()
    for function in chain:
        try:
            parameters = inspect.signature(function).parameters
        except (ValueError, TypeError):
            return known, needed, True
        hints = _hints(function)
        rest: inspect.Parameter | None = None
        for name, p in parameters.items():
            if p.kind is p.VAR_KEYWORD:
                rest = p
            elif name not in ("self", "cls") and p.kind is not p.VAR_POSITIONAL:
                known.setdefault(name, hints.get(name, Any))
                if p.default is p.empty and function is chain[0]:
                    needed.add(name)
        if rest is None:
            return known, needed, False
        unpacked = typing.get_args(hints.get(rest.name))
        if unpacked and hasattr(unpacked[0], "__annotations__"):
            known.update(_hints(unpacked[0]))
            return known, needed, False
    return known, needed, True


def _hints(of: Any) -> dict[str, Any]:
    try:
        return typing.get_type_hints(of)
    except (NameError, TypeError, AttributeError):
        return {}


def fits(value: Any, annotation: Any) -> bool:
    """Whether a plain value can be of an annotated type; True where that cannot be told."""
    if annotation in (Any, inspect.Parameter.empty) or isinstance(annotation, typing.TypeVar):
        return True
    origin = typing.get_origin(annotation)
    if origin in (typing.Union, types.UnionType):
        return any(fits(value, option) for option in typing.get_args(annotation))
    if origin is typing.Literal:
        return value in typing.get_args(annotation)
    if annotation is None or annotation is type(None):
        return value is None
    if annotation is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if annotation is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if annotation in (str, bool):
        return isinstance(value, annotation)
    if origin in (tuple, list, Sequence):
        return isinstance(value, list | tuple) and _items_fit(value, typing.get_args(annotation))
    if annotation is Path:
        return isinstance(value, str)
    if inspect.isclass(annotation):
        return (annotation in (list, tuple) and isinstance(value, list)) or isinstance(value, annotation)
    return isinstance(value, origin) if inspect.isclass(origin) else value is not None


def _items_fit(values: Sequence[Any], options: tuple[Any, ...]) -> bool:
    """Whether items fit ``[X]``, ``[X, ...]`` or one annotation each; mappings are checked as targets instead."""
    if options and options[-1] is not Ellipsis and len(options) > 1:
        return len(values) == len(options) and all(map(fits, values, options))
    return not options or all(isinstance(value, Mapping) or fits(value, options[0]) for value in values)


def validate(cfg: Mapping[str, Any], groups: Sequence[str], packages: Sequence[str] = ()) -> None:
    """Check a composed configuration before anything is built.

    Args:
        cfg: the configuration as plain containers.
        groups: top-level keys the program knows.
        packages: packages that targets may come from besides the suite's own.

    Raises:
        ConfigError: an unknown key, an argument no constructor takes, a missing or ill-typed value, a forbidden target.
    """
    for key in cfg:
        if key not in groups:
            raise ConfigError(f"unknown key '{key}'{nearest(key, set(groups))}")
    check_settings(cfg)
    check_objects(cfg)
    for where, node in targets(cfg):
        check_arguments(check_target(node["_target_"], f"{where}._target_", packages), node, where)


def refuse_scripted(cfg: Mapping[str, Any]) -> None:
    """Refuse a method that needs more than a program of the suite offers.

    Raises:
        ConfigError: a script of its own runs the method; the message names it.
    """
    node = cfg.get("adapter") or {}
    if "_target_" not in node:
        return
    found = check_target(node["_target_"], "adapter._target_", cfg.get("trusted_packages") or ())
    if script := getattr(getattr(found, "tags", None), "script", None):
        raise ConfigError(f"{cfg['name']}: {found.__name__} is neither trained by train.py nor run along a stream by adapt.py; "
                          f"run: python {script}, or use the class in a program of your own")


def check_settings(cfg: Mapping[str, Any]) -> None:
    """Check the keys that no constructor takes: those of `SETTINGS` and the kinds of view.

    Raises:
        ConfigError: an unknown key, an ill-typed value, a kind of view that looks misspelt.
    """
    nested = {f"evaluation.{key}": value for key, value in (cfg.get("evaluation") or {}).items()}
    for key in nested:
        if key not in SETTINGS:
            raise ConfigError(f"unknown key '{key}'{nearest(key, {k for k in SETTINGS if '.' in k})}")
    for key, value in {**cfg, **nested}.items():
        if key in SETTINGS and not fits(value, SETTINGS[key]):
            raise ConfigError(f"{key}={value!r}: {describe(SETTINGS[key])} expected")
    for kind in (cfg.get("data") or {}).get("views") or ():
        if kind not in VIEW_KINDS and difflib.get_close_matches(kind, VIEW_KINDS, cutoff=0.7):
            raise ConfigError(f"unknown key 'data.views.{kind}'{nearest(kind, set(VIEW_KINDS))}")


def check_objects(cfg: Mapping[str, Any]) -> None:
    """Check that every group holds what can be built.

    Raises:
        ConfigError: a misspelt ``_target_`` or other special key, or an entry that names no class.
    """
    for where, node in mappings(cfg):
        for key in node:
            near = key.endswith("_") and difflib.get_close_matches(key, HYDRA_KEYS)
            if key not in HYDRA_KEYS and (key.startswith("_") or near):
                raise ConfigError(f"unknown key '{where}.{key}'{nearest(key, set(HYDRA_KEYS))}")
    for group in MANY:
        for name, node in (cfg.get(group) or {}).items():
            if name not in (MANY[group] or (name,)) or (node is not None and "_target_" not in node):
                others = set(MANY[group]) or {k for k, v in cfg[group].items() if v and "_target_" in v}
                raise ConfigError(f"{group}.{name} names no class{nearest(name, others)}")
    for group in ONE:
        if cfg.get(group) is not None and "_target_" not in cfg[group]:
            raise ConfigError(f"{group} names no class: {group}._target_ is missing; choose one with {group}=...")


def check_arguments(found: Any, node: Mapping[str, Any], where: str) -> None:
    """Check what a node of the config passes to its target.

    Raises:
        ConfigError: an argument that the target does not take, an ill-typed or a missing one.
    """
    known, needed, open_ended = arguments(found)
    given = {k: v for k, v in node.items() if not k.startswith("_")}
    for name, value in given.items():
        if name not in known:
            if open_ended and not difflib.get_close_matches(name, known, cutoff=0.7):
                continue
            raise ConfigError(f"{where}.{name}: {found.__name__} takes no '{name}'{nearest(name, set(known))}; "
                              f"leave it out with ~{where}.{name}")
        if not isinstance(value, Mapping) and not fits(value, known[name]):
            raise ConfigError(f"{where}.{name}={value!r}: {found.__name__} expects {describe(known[name])}")
    missing = needed - set(given) - BUILT_LATER
    if missing and not node.get("_partial_"):
        name = sorted(missing)[0]
        raise ConfigError(f"{where}.{name} is missing: {found.__name__} needs it; set {where}.{name}=...")


def describe(annotation: Any) -> str:
    """An annotation in words a user can read."""
    return annotation.__name__ if isinstance(annotation, type) else str(annotation).replace("typing.", "")


def targets(node: Any) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Every mapping with a ``_target_``, with its dotted place, outermost first."""
    return ((where, inner) for where, inner in mappings(node) if "_target_" in inner)


def mappings(node: Any, where: str = "") -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Every mapping, with its dotted place, outermost first."""
    if isinstance(node, Mapping):
        yield where, node
        for key, value in node.items():
            yield from mappings(value, f"{where}.{key}" if where else str(key))
    elif isinstance(node, Sequence) and not isinstance(node, str):
        for i, value in enumerate(node):
            yield from mappings(value, f"{where}[{i}]")
