"""What is written beside the code agrees with it."""

from __future__ import annotations

import ast
import re
import shlex
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from tests.configs import SCRIPTED, composed

ROOT = Path(__file__).resolve().parents[2]
METHODS = [p for p in sorted((ROOT / "ssl_suite" / "methods").rglob("*.py"))
           if p.name != "__init__.py" and p.parent.name != "policies"]
HEADED = sorted([*(ROOT / "configs" / "model").glob("*.yaml"), *(ROOT / "configs" / "experiment").glob("*.yaml")])

@pytest.mark.parametrize("path", HEADED, ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_the_command_of_a_config_uses_it(path: Path) -> None:
    lines = path.read_text().splitlines()
    assert lines[0] == "# @package _global_"
    runs = SCRIPTED.get(path.stem) if path.parent.name == "model" else None
    pattern = rf"# python {re.escape(runs)}" if runs else rf"# python (train|adapt)\.py .*\b{path.parent.name}={path.stem}\b"
    assert re.match(pattern, lines[1]), lines[1]


@pytest.mark.parametrize("path", METHODS, ids=lambda p: p.stem)
def test_method_files_open_with_five_parts(path: Path) -> None:
    doc = ast.get_docstring(ast.parse(path.read_text())) or ""
    missing = [part for part in ("Idea:", "Paper:", "Deviations:", "Batch:", "Known limits:") if part not in doc]
    assert not missing, f"{path}: {missing}"


def commands(page: Path) -> list[list[str]]:
    """Overrides of every train.py and adapt.py command in the shell blocks of a page."""
    found = []
    for block in re.findall(r"```bash\n(.*?)```", page.read_text(), re.S):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            found += [words[i + 1:] for i, w in enumerate(words) if w in ("train.py", "adapt.py") and "&&" not in words[i:]]
    return found


@pytest.mark.parametrize("page", ["README.md", *sorted(f"docs/{p.name}" for p in (ROOT / "docs").glob("*.md"))])
def test_commands_in_the_pages_compose(page: str) -> None:
    for words in commands(ROOT / page):
        given = [w for w in words if "=" in w and not w.startswith("-") and "$" not in w and not re.search("hydra[./]", w)]
        if any(re.search(r"=my_?\w*|my_", w) for w in words):
            continue  # the reader's own configs
        program = "adapt" if any(w.startswith(("checkpoint=", "network=")) for w in given) else "train"
        sweep = "-m" in words
        given = [g.split("=", 1)[0] + "=" + g.split("=", 1)[1].split(",")[0] if sweep and "[" not in g else g for g in given]
        composed(*given, program=program)


def test_the_readme_prints_the_command_that_ci_runs() -> None:
    line = 'python3 -m venv .venv && . .venv/bin/activate && pip install -e ".[dev]" && python -m pytest'
    assert line in (ROOT / "README.md").read_text().splitlines()
    script = (ROOT / ".ci" / "run").read_text()
    assert f"command='{line}'" in script
    assert "set -euo pipefail" in script
    assert 'eval "$command"' in script
    assert "grep -qxF" in script, "a changed README must fail"
    assert (ROOT / ".ci" / "run").stat().st_mode & 0o111, ".ci/run is not executable"


def test_every_fault_has_a_test_and_a_control() -> None:
    files = (ROOT / "tests").rglob("test_*.py")
    there = {name for path in files for name in re.findall(r"^def (test_\w+)", path.read_text(), re.M)}
    rows = [line.split("|")[1:-1] for line in (ROOT / "docs" / "reliability.md").read_text().splitlines() if line.startswith("| ")]
    for fault, _, test, control in rows[1:]:
        shown = re.findall(r"[\w/]+\.py", test)
        assert shown, fault
        assert all((ROOT / "tests" / file).is_file() for file in shown), shown
        controls = re.findall(r"test_control_\w+", control)
        assert controls, f"{fault}: no control"
        named = {*re.findall(r"\btest_\w+\b(?!\.py)", test), *controls}
        assert named <= there, f"{fault}: there is no {named - there}"


def test_links_in_the_pages_lead_somewhere() -> None:
    broken = []
    for page in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")):
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text()):
            if not (page.parent / target).exists():
                broken.append(f"{page.name}: {target}")
    assert not broken, broken


def test_requirements_exclude_the_tampered_releases_and_match_the_trio() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    needed = {r.name: r.specifier for r in map(Requirement, project["dependencies"])}
    for bad in ("2.6.2", "2.6.3"):
        assert not needed["lightning"].contains(bad)
    assert needed["lightning"].contains("2.6.6")
    for name, good, bad in (("torch", "2.12.0", "2.13.0"), ("torchvision", "0.27.0", "0.28.0"), ("torchaudio", "2.11.0", "2.11.1")):
        assert needed[name].contains(good)
        assert not needed[name].contains(bad), f"{name} {bad} does not go with the other two"
    for extra in project["optional-dependencies"].values():
        for requirement in map(Requirement, extra):
            assert requirement.specifier or requirement.name == "ssl-suite", f"{requirement} has no lower bound"
