"""The page of ``scripts/report.py``: whole, well-formed, and on its own."""

from __future__ import annotations

import base64
import json
import runpy
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

from tests.runs import run, tiny_data

ROOT = Path(__file__).resolve().parents[2]
LOADING = {"src", "href", "srcset", "data", "action", "poster"}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("report")
    data = tiny_data("images", folder)
    found = [run(folder / "one" / "run", "model=simclr", *data, "evaluation.probes=true"),
             run(folder / "two" / "run", "model=supervised", *data, "optimizer.lr=0.007")]
    (found[0] / "command.txt").write_text("python train.py model=simclr 'name=a<b'\n")
    return found


def report(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> None:
    monkeypatch.setattr(sys, "argv", ["report.py", *map(str, arguments)])
    runpy.run_path(str(ROOT / "scripts" / "report.py"), run_name="__main__")


def test_the_page_holds_every_run_and_score(runs: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "page.html"
    report(monkeypatch, *runs, "--out", out)
    text = out.read_text()
    tree = ElementTree.fromstring(text.removeprefix("<!DOCTYPE html>"))
    cells = ["".join(cell.itertext()).strip() for cell in tree.iter() if cell.tag in ("th", "td")]
    assert {"one/run", "two/run", "SimCLR", "Classifier", "untrained", "raw"} <= set(cells)
    for folder in runs:
        summary = json.loads((folder / "summary.json").read_text())
        for name, value in {**summary["scores"], **summary["references"]["raw"]}.items():
            assert name in cells
            assert f"{value:.4f}" in cells
    row = cells.index("optimizer.lr")
    assert cells[row + 1: row + 3] == ["0.002", "0.007"], "settings that differ stand side by side"
    assert not [cell for cell in cells if str(tmp_path.parent) in cell], "the run folder is no setting"
    blocks = ["".join(block.itertext()) for block in tree.iter("pre")]
    assert "python train.py model=simclr 'name=a<b'\n" in blocks
    assert (runs[1] / "config.yaml").read_text() in blocks


def test_the_page_loads_nothing(runs: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "page.html"
    report(monkeypatch, *runs, "--out", out)
    tree = ElementTree.fromstring(out.read_text().removeprefix("<!DOCTYPE html>"))
    assert not {"script", "link", "iframe", "object", "embed"} & {element.tag for element in tree.iter()}
    loaded = [value for element in tree.iter() for key, value in element.attrib.items() if key in LOADING]
    pictures = [path for folder in runs for path in (folder / "pictures").glob("*.png")]
    assert len(loaded) == len(pictures) + 1, "every picture and the curves"
    assert all(value.startswith("data:image/png;base64,") for value in loaded)
    content = [base64.b64decode(value.split(",", 1)[1]) for value in loaded]
    assert all(png.startswith(b"\x89PNG") for png in content)
    assert all(path.read_bytes() in content for path in pictures)
    assert "url(" not in (style := "".join(tree.find("head/style").itertext()))  # type: ignore[union-attr]
    assert "@import" not in style


def test_one_run_keeps_its_page(runs: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    report(monkeypatch, runs[1])
    page = (runs[1] / "report.html").read_text()
    assert "Settings that differ" not in page
    assert "not recorded" in page


def test_an_unfinished_run_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        report(monkeypatch, tmp_path)
    assert "holds no finished run" in capsys.readouterr().err
