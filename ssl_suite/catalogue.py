"""The catalogue of methods, read from the code and the configs: never written by hand."""

from __future__ import annotations

import ast
import importlib
from dataclasses import dataclass, replace
from importlib.resources import files
from typing import Any

import yaml

from ssl_suite.batch import Tags


@dataclass(frozen=True)
class Entry:
    """One method config.

    Attributes:
        name: what to write after ``model=``.
        program: ``train.py`` or ``adapt.py``, or both; or the script that runs the method.
        summary: first line of the method file.
        tags: what the method needs.
    """

    name: str
    program: str
    summary: str
    tags: Tags


def entries() -> list[Entry]:
    """Every method config with the tags of its class, sorted by task and name."""
    found = []
    for path in sorted(files("configs").joinpath("model").iterdir(), key=lambda p: p.name):
        if not path.name.endswith(".yaml"):
            continue
        text = path.read_text()
        config: dict[str, Any] = yaml.safe_load(text)
        nodes = {"train.py": config.get("model"), "adapt.py": config.get("adapter")}
        programs = [program for program, node in nodes.items() if node]
        module, name = nodes[programs[0]]["_target_"].rsplit(".", 1)  # type: ignore[index]
        source = importlib.import_module(module)
        doc = (ast.get_docstring(ast.parse(source.__loader__.get_source(module))) or "").splitlines()[0]  # type: ignore[union-attr]
        tags = getattr(source, name).tags
        if "fixmatch" in config.get("defaults", ()):  # FixMatch with another policy: the policy is what there is to say
            policy = policy_of(config["defaults"])
            doc, tags = (policy.__doc__ or "").splitlines()[0], replace(tags, paper=policy.paper)
        elif tags.paper == "none":  # one class, several uses: the line under the command says which
            doc = text.splitlines()[2].removeprefix("# ")
        found.append(Entry(path.name[:-5], tags.script or " and ".join(programs), doc.rstrip("."), tags))
    order = ("pretraining", "self_training", "distillation", "adaptation", "supervised")
    return sorted(found, key=lambda e: (order.index(e.tags.task), e.name))


def policy_of(defaults: list[Any]) -> Any:
    """The class of the policy that a defaults list chooses."""
    choice = next(entry["override /policy"] for entry in defaults if isinstance(entry, dict) and "override /policy" in entry)
    target: str = yaml.safe_load(files("configs").joinpath("policy", f"{choice}.yaml").read_text())["_target_"]
    module, name = target.rsplit(".", 1)
    return getattr(importlib.import_module(module), name)


def markdown() -> str:
    """The catalogue as a Markdown table."""
    lines = ["| `model=` | task | what it does | paper | images | speech | series | program |", "|---|---|---|---|:-:|:-:|:-:|---|"]
    for e in entries():
        marks = " | ".join("x" if m in e.tags.modalities else "" for m in ("images", "speech", "series"))
        lines.append(f"| `{e.name}` | {e.tags.task.replace('_', '-')} | {e.summary} | {e.tags.paper} | {marks} | `{e.program}` |")
    return "\n".join(lines)
