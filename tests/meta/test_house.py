"""The house rules that a machine can check."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ssl_suite.catalogue import markdown

ROOT = Path(__file__).resolve().parents[2]
FLOORS = ("functional", "nn", "backbones", "views", "methods", "callbacks")
MAY_USE = {
    "functional": {"functional"},
    "nn": {"functional", "nn"},
    "backbones": {"functional", "nn", "backbones"},
    "views": {"functional", "nn", "views"},
    "methods": {"functional", "nn", "views", "methods", "backbones"},
    "callbacks": set(FLOORS),
}
TEST_COMMAND = 'python3 -m venv .venv && . .venv/bin/activate && pip install -e ".[dev]" && python -m pytest'


def sources(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module


@pytest.mark.parametrize("floor", FLOORS)
def test_imports_point_one_way(floor: str) -> None:
    for path in sources(f"ssl_suite/{floor}"):
        used = {name.split(".")[1] for name in imports(path) if name.startswith("ssl_suite.") and name.split(".")[1] in FLOORS}
        assert used <= MAY_USE[floor], f"{path} imports from {used - MAY_USE[floor]}"


def test_the_library_never_imports_the_data_modules() -> None:
    for path in sources("ssl_suite"):
        assert not any(name.split(".")[0] == "datamodules" for name in imports(path)), path


def test_one_lightning() -> None:
    for path in sources("ssl_suite", "datamodules", "scripts", "tests"):
        assert not any(name.split(".")[0] == "pytorch_lightning" for name in imports(path)), path


def test_import_stays_light() -> None:
    heavy = ("torchaudio", "aeon", "pandas", "espeakng_loader", "soundfile", "litdata")
    code = f"import sys, ssl_suite; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_budgets() -> None:
    budgets = {"ssl_suite/methods": 200, "datamodules": 120}
    files = [(path, limit) for folder, limit in budgets.items() for path in sources(folder)]
    files.remove((ROOT / "datamodules/base.py", 120))  # what all data modules share, and so need not repeat
    files += [(ROOT / "datamodules/base.py", 165), (ROOT / "ssl_suite/method.py", 150), (ROOT / "ssl_suite/adapter.py", 150)]
    files += [(ROOT / "train.py", 40), (ROOT / "adapt.py", 40)]
    over = {str(path): lines for path, limit in files if (lines := len(path.read_text().splitlines())) > limit}
    assert not over
    for path in sources("ssl_suite", "datamodules", "scripts"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef) and node.end_lineno is not None:
                assert node.end_lineno - node.lineno < 50, f"{path}:{node.lineno} {node.name} is too long"


@pytest.mark.parametrize("path", sorted([*(ROOT / "configs/model").glob("*.yaml"), *(ROOT / "configs/experiment").glob("*.yaml")]),
                         ids=lambda p: p.stem)
def test_configs_open_with_command_hardware_time_and_result(path: Path) -> None:
    head = []
    for line in path.read_text().splitlines():
        if not line.startswith("#"):
            break
        head.append(line)
    text = " ".join(head)
    assert "python " in text, f"{path} does not say how it is run"
    assert "hardware" in text, f"{path} names no hardware"
    assert "time" in text, f"{path} names no time"
    assert "measured" in text, f"{path} says nothing of a measurement"


@pytest.mark.parametrize("page", ["README.md", "docs/methods.md"])
def test_the_catalogue_is_up_to_date(page: str) -> None:
    assert markdown() in (ROOT / page).read_text(), "run: python scripts/list_methods.py --write"


def test_no_step_waits_for_the_device() -> None:
    for path in sources("ssl_suite/methods"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef) and node.name == "step":
                calls = [n.func for n in ast.walk(node) if isinstance(n, ast.Call)]
                methods = {f.attr for f in calls if isinstance(f, ast.Attribute)} & {"item", "tolist", "cpu", "numpy"}
                functions = {f.id for f in calls if isinstance(f, ast.Name)} & {"print", "float", "int", "bool"}
                assert not methods | functions, f"{path}: step calls {methods | functions}"


def test_the_readme_prints_what_ci_runs() -> None:
    assert f"\n{TEST_COMMAND}\n" in (ROOT / "README.md").read_text()
    assert TEST_COMMAND in (ROOT / ".ci/run").read_text()


def test_tampered_releases_are_excluded() -> None:
    requirements = (ROOT / "pyproject.toml").read_text()
    assert "!=2.6.2" in requirements
    assert "!=2.6.3" in requirements
