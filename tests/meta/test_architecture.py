"""The rules of the house: imports point one way, files stay small, nothing in a step waits for the device."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = sorted((ROOT / "ssl_suite").rglob("*.py"))
MODULES = sorted((ROOT / "datamodules").rglob("*.py"))
SCRIPTS = sorted((ROOT / "scripts").glob("*.py"))
METHODS = [p for p in sorted((ROOT / "ssl_suite" / "methods").rglob("*.py")) if p.name != "__init__.py"]

LAYERS: dict[str, int] = {name: level for level, names in enumerate((
    ("batch", "config", "functional", "optim"),
    ("nn", "io.checkpoints"),
    ("views", "backbones"),
    ("method", "adapter", "data", "io", "evaluation"),
    ("methods",),
    ("callbacks",),
    ("summary", "catalogue", "testing"),
    ("run", "cli"),
    ("deploy", "programs"),
    ("__main__",),
)) for name in names}
"""A part may import from its own level and from those above it in this list."""

IMPORTS_DOWN: dict[tuple[str, str], str] = {
    ("views.speech", "backbones.speech"): "the mel filters of a view are those of the backbone",
}


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def imports(path: Path) -> Iterator[tuple[str, bool]]:
    """Absolute names of imported modules, and whether the import stands at the top of the file."""
    tree = ast.parse(path.read_text())
    top = {id(node) for node in tree.body}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, id(node) in top) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield node.module or "", id(node) in top


def level(module: str) -> int:
    inner = module.removeprefix("ssl_suite").lstrip(".")
    known = [name for name in LAYERS if inner == name or inner.startswith(f"{name}.")]
    assert known or not inner, f"{module} stands in no layer: add it to LAYERS"
    return LAYERS[max(known, key=len)] if known else -1


@pytest.mark.parametrize("path", PACKAGE, ids=name_of)
def test_imports_point_one_way(path: Path) -> None:
    own = level(name_of(path))
    for module, _ in imports(path):
        assert not module.startswith(("datamodules", "scripts", "tests")), f"{path} imports {module}"
        assert module.split(".")[0] != "pytorch_lightning", f"{path}: import from lightning"
        if module.startswith("ssl_suite") and name_of(path) != "ssl_suite":
            pair = (name_of(path).removeprefix("ssl_suite."), module.removeprefix("ssl_suite."))
            assert level(module) <= own or pair in IMPORTS_DOWN, f"{name_of(path)} imports {module}"


@pytest.mark.parametrize("path", [*MODULES, *SCRIPTS], ids=name_of)
def test_the_others_import_only_the_package(path: Path) -> None:
    for module, _ in imports(path):
        assert module.split(".")[0] not in ("pytorch_lightning", "tests"), f"{path} imports {module}"
        if path in MODULES and module.startswith("ssl_suite"):
            assert module.startswith(("ssl_suite.data", "ssl_suite.batch", "ssl_suite.views", "ssl_suite.config")), module


HEAVY = ("torchaudio", "aeon", "pandas", "pyarrow", "soundfile", "jiwer", "espeakng_loader", "onnx", "onnxruntime", "matplotlib.pyplot")


@pytest.mark.parametrize("path", [*PACKAGE, *MODULES], ids=name_of)
def test_modalities_load_when_used(path: Path) -> None:
    assert not [m for m, top in imports(path) if top and m.split(".")[0] in HEAVY]


def test_import_is_light() -> None:
    code = ("import sys, ssl_suite, ssl_suite.run, ssl_suite.deploy, ssl_suite.views.speech, ssl_suite.backbones.speech\n"
            f"print([m for m in {HEAVY!r} if m in sys.modules])")
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=300)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr


BUDGETS = [(METHODS, 200), (MODULES, 120 + 50), ([p for p in MODULES if p.name != "base.py"], 120),
           ([ROOT / "ssl_suite" / "method.py", ROOT / "ssl_suite" / "adapter.py"], 150), ([ROOT / "train.py", ROOT / "adapt.py"], 40)]


def test_files_keep_their_budgets() -> None:
    over = [f"{name_of(p)}: {n} of {limit}" for files, limit in BUDGETS for p in files
            if (n := len(p.read_text().splitlines())) > limit]
    assert not over, over


def test_functions_keep_their_budget() -> None:
    long = []
    for path in [*PACKAGE, *MODULES, *SCRIPTS]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef) and (node.end_lineno or 0) - node.lineno + 1 > 50:
                long.append(f"{name_of(path)}.{node.name}: {(node.end_lineno or 0) - node.lineno + 1}")
    assert not long, long


def waits(node: ast.AST) -> Iterator[str]:
    """Calls that make the host wait for the device, or write to the terminal."""
    for call in ast.walk(node):
        if isinstance(call, ast.Call):
            name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
            if name in ("item", "cpu", "numpy", "tolist", "print", "nonzero") or name in ("float", "int", "bool") \
                    and isinstance(call.func, ast.Name):
                yield f"line {call.lineno}: {name}"


@pytest.mark.parametrize("path", METHODS, ids=name_of)
def test_a_step_never_waits_for_the_device(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef) and node.name in ("step", "training_step"):
            assert not list(waits(node)), f"{path}: {list(waits(node))}"


def test_the_control_finds_a_wait() -> None:
    assert list(waits(ast.parse("def step(self, batch):\n    return float(loss), loss.item()")))
    assert not list(waits(ast.parse("def step(self, batch):\n    return loss.float()")))


@pytest.mark.parametrize("path", METHODS, ids=name_of)
def test_method_files_open_with_five_parts(path: Path) -> None:
    if path.name == "policies.py":
        return
    doc = ast.get_docstring(ast.parse(path.read_text())) or ""
    missing = [part for part in ("Idea:", "Paper:", "Deviations:", "Batch:", "Known limits:") if part not in doc]
    assert not missing, f"{path}: {missing}"
