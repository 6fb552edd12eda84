"""Checks before anything is built: unknown keys, arguments that no constructor takes, targets that must not be called.

Hydra refuses an unknown key on the command line, but an experiment file with a misspelt key composes silently and a misspelt
constructor argument fails only after the data were read. `validate` finds both first and names the nearest valid word.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

ALLOWED_PACKAGES = ("ssl_suite", "datamodules", "torch", "torchvision", "torchaudio", "timm", "lightning", "lightly", "functools")
BLOCKED_TARGETS = ("torch.load", "torch.hub", "torch.package", "torch.utils.cpp_extension", "torch.ops.load_library")
BUILT_LATER = {"backbone", "views", "optimizer", "schedule", "num_classes", "vocabulary", "spec", "params", "model"}
"""Arguments that the builder passes itself, so that a config need not."""

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
    close = difflib.get_close_matches(word, sorted(words), n=1, cutoff=0.6)
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
                raise ConfigError(f"{where}: {name} has no '{part}'{nearest(part, {n for n in dir(found) if n[0] != '_'})}")
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
        ConfigError: the target lies outside the allowed packages, loads code or weights, or does not exist.
    """
    allowed = (*ALLOWED_PACKAGES, *packages)
    if target.split(".")[0] not in allowed:
        raise ConfigError(f"{where}: {target} lies outside the packages a config may call ({', '.join(allowed)}); "
                          f"add yours with trusted_packages=[{target.split('.')[0]}]")
    if any(target == b or target.startswith(f"{b}.") for b in BLOCKED_TARGETS):
        raise ConfigError(f"{where}: {target} may not be called from a config")
    return locate(target, where)


def arguments(target: Any) -> tuple[dict[str, Any], set[str], bool]:
    """What can be passed to a callable by keyword.

    Returns:
        Annotation of each name, the names without default, and whether any further name is taken.
    """
    chain = [c.__init__ for c in target.__mro__ if "__init__" in vars(c)] if inspect.isclass(target) else [target]
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
        return not isinstance(value, str | int | float | bool)
    return value is not None or annotation is object or origin is None and not inspect.isclass(annotation)


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
    for where, node in targets(cfg):
        found = check_target(node["_target_"], f"{where}._target_", packages)
        known, needed, open_ended = arguments(found)
        given = {k: v for k, v in node.items() if not k.startswith("_")}
        for name, value in given.items():
            if name not in known:
                if open_ended:
                    continue
                raise ConfigError(f"{where}.{name}: {found.__name__} takes no '{name}'{nearest(name, set(known))}")
            if not isinstance(value, Mapping) and not fits(value, known[name]):
                raise ConfigError(f"{where}.{name}={value!r}: {found.__name__} expects {describe(known[name])}")
        missing = needed - set(given) - BUILT_LATER
        if missing and not node.get("_partial_"):
            name = sorted(missing)[0]
            raise ConfigError(f"{where}.{name} is missing: {found.__name__} needs it; set {where}.{name}=...")


def describe(annotation: Any) -> str:
    """An annotation in words a user can read."""
    return annotation.__name__ if isinstance(annotation, type) else str(annotation).replace("typing.", "")


def targets(node: Any, where: str = "") -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Every mapping with a ``_target_``, with its dotted place, outermost first."""
    if isinstance(node, Mapping):
        if "_target_" in node:
            yield where, node
        for key, value in node.items():
            yield from targets(value, f"{where}.{key}" if where else str(key))
    elif isinstance(node, Sequence) and not isinstance(node, str):
        for i, value in enumerate(node):
            yield from targets(value, f"{where}[{i}]")
