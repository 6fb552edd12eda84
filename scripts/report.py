"""One HTML page about one run or several side by side; it loads nothing, so that it can be mailed or archived.

    python scripts/report.py RUN                        # writes RUN/report.html
    python scripts/report.py RUN RUN ... --out page.html

It shows what was run and how to repeat it, scores beside references, settings that differ, curves, pictures, and time. Runs of
``adapt.py`` can stand beside those of ``train.py``.
"""

from __future__ import annotations

import base64
import csv
import io
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import yaml
from jinja2 import Environment
from rich.console import Console

from ssl_suite.programs import guarded, parser
from ssl_suite.summary import Summary, read_summary

matplotlib.use("Agg")
from matplotlib import pyplot as plt

PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8" /><title>{{ title }}</title><style>
body { font: 15px/1.5 sans-serif; margin: 2em auto; max-width: 75em; padding: 0 1em }
table { border-collapse: collapse }
td, th { border-bottom: 1px solid #ccc; padding: .2em .8em; text-align: left; vertical-align: top }
td.number { text-align: right; font-variant-numeric: tabular-nums } pre { background: #f4f4f4; overflow-x: auto; padding: .6em }
img { max-width: 100% } .runs { display: flex; flex-wrap: wrap; gap: 2em } .runs > div { flex: 1 1 30em; min-width: 0 }
.scroll { overflow-x: auto }
</style></head><body>
<h1>{{ title }}</h1>
<h2>Runs</h2>
<div class="scroll"><table>
<tr><th></th>{% for run in runs %}<th>{{ run.name }}</th>{% endfor %}</tr>
{% for key in ("method", "data", "modality", "seed", "commit", "wall_seconds", "samples_per_second", "data_wait") %}
<tr><th>{{ key | replace("_", " ") }}</th>{% for run in runs %}<td>{{ run.summary[key] }}</td>{% endfor %}</tr>
{% endfor %}
<tr><th>versions</th>{% for run in runs %}<td>{% for name, version in run.summary.versions.items() %}{{ name }} {{ version }}<br />
{% endfor %}</td>{% endfor %}</tr>
</table></div>
<h2>Scores</h2>
<div class="scroll"><table>
<tr><th></th>{% for run in runs %}{% for column in run.columns %}<th>{{ run.name if column == "scores" else column }}</th>
{% endfor %}{% endfor %}</tr>
{% for score in scores %}
<tr><th>{{ score }}</th>{% for run in runs %}{% for values in run.columns.values() %}<td class="number">
{{- "%.4f" | format(values[score]) if score in values -}}</td>{% endfor %}{% endfor %}</tr>
{% endfor %}
</table></div>
{% if differing %}<h2>Settings that differ</h2>
<div class="scroll"><table>
<tr><th></th>{% for run in runs %}<th>{{ run.name }}</th>{% endfor %}</tr>
{% for key, values in differing.items() %}<tr><th>{{ key }}</th>{% for value in values %}<td>{{ value }}</td>{% endfor %}</tr>
{% endfor %}
</table></div>{% endif %}
{% if curves %}<h2>Curves</h2>
<p><img alt="what was logged, by step" src="{{ curves }}" /></p>{% endif %}
<div class="runs">
{% for run in runs %}<div>
<h2>{{ run.name }}</h2>
<h3>To repeat it</h3>
<pre>{{ run.command }}</pre>
<h3>Configuration</h3>
<details><summary>config.yaml</summary><pre>{{ run.config_text }}</pre></details>
{% for name, picture in run.pictures.items() %}
<h3>{{ name }}</h3>
<p><img alt="{{ name }}" src="{{ picture }}" /></p>
{% endfor %}
</div>{% endfor %}
</div>
</body></html>
"""


@dataclass
class Told:
    """What a run folder tells.

    Attributes:
        name: of the run, unlike that of any other on the page.
        summary: content of ``summary.json``.
        columns: the run's scores and those of its references.
        command: what was typed.
        config_text: content of ``config.yaml``.
        settings: the same as dotted key -> value, with ``RUN`` for the run folder.
        curves: metric -> steps and values.
        pictures: file name -> data URI.
    """

    name: str
    summary: Summary
    columns: dict[str, dict[str, float]]
    command: str
    config_text: str
    settings: dict[str, Any]
    curves: dict[str, tuple[list[int], list[float]]]
    pictures: dict[str, str]


def inlined(png: bytes) -> str:
    """A picture as a data URI."""
    return "data:image/png;base64," + base64.b64encode(png).decode()


def told(folder: Path, name: str) -> Told:
    """Read a run folder.

    Raises:
        ConfigError: it holds no finished run.
    """
    summary = read_summary(folder)
    command, config_text = folder / "command.txt", (folder / "config.yaml").read_text()
    return Told(name, summary, {"scores": summary["scores"], **{k: v for k, v in summary["references"].items() if v}},
                command.read_text() if command.is_file() else "not recorded; config.yaml holds every setting",
                config_text, leaves(yaml.safe_load(config_text.replace(str(folder), "RUN"))), logged(folder / "metrics.csv"),
                {path.name: inlined(path.read_bytes()) for path in sorted((folder / "pictures").glob("*.png"))})


def logged(path: Path) -> dict[str, tuple[list[int], list[float]]]:
    """Curves of a ``metrics.csv``: metric -> steps and values; none where there is no file."""
    curves: dict[str, tuple[list[int], list[float]]] = {}
    if path.is_file():
        with path.open(newline="") as file:
            for row in csv.DictReader(file):
                for metric, value in row.items():
                    if metric not in ("step", "epoch") and value:
                        steps, values = curves.setdefault(metric, ([], []))
                        steps.append(int(row["step"]))
                        values.append(float(value))
    return curves


def drawn(runs: list[Told]) -> str | None:
    """All curves as one picture, a panel for each metric and a line for each run; None where nothing was logged."""
    metrics = list(dict.fromkeys(metric for run in runs for metric in run.curves))
    if not metrics:
        return None
    rows = math.ceil(len(metrics) / 3)
    figure, axes = plt.subplots(rows, 3, figsize=(12, 2.6 * rows), squeeze=False)
    for axis, metric in zip(axes.flat, metrics, strict=False):
        for i, run in enumerate(runs):
            if metric in run.curves:
                steps, values = run.curves[metric]
                axis.plot(steps, values, color=f"C{i}", linewidth=1, marker="." if len(steps) < 3 else None, label=run.name)
        axis.set_title(metric, fontsize=9)
    for axis in axes.flat[len(metrics):]:
        axis.set_axis_off()
    if len(runs) > 1:
        axes[0, 0].legend(fontsize=7)
    figure.tight_layout()
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=110, format="png")
    plt.close(figure)
    return inlined(buffer.getvalue())


def leaves(node: Any, where: str = "") -> dict[str, Any]:
    """Dotted key -> value of every setting."""
    if isinstance(node, dict) and node:
        return {k: v for key, value in node.items() for k, v in leaves(value, f"{where}.{key}" if where else str(key)).items()}
    return {where: node}


def differing(runs: list[Told]) -> dict[str, list[Any]]:
    """Settings in which the runs are not all alike, with the value in each; a run without the setting has a dash."""
    table = {key: [run.settings.get(key, "-") for run in runs] for key in dict.fromkeys(k for run in runs for k in run.settings)}
    return {key: values for key, values in table.items() if any(value != values[0] for value in values)}


def page(folders: list[Path]) -> str:
    """The page about the runs in these folders."""
    folders = [folder.resolve() for folder in folders]
    shared = os.path.commonpath([folder.parent for folder in folders])
    runs = [told(folder, str(folder.relative_to(shared))) for folder in folders]
    scores = list(dict.fromkeys(score for run in runs for values in run.columns.values() for score in values))
    title = ", ".join(dict.fromkeys(f"{run.summary['method']} on {run.summary['data']}" for run in runs))
    template = Environment(autoescape=True, trim_blocks=True).from_string(PAGE)
    return template.render(title=title, runs=runs, scores=scores, differing=differing(runs), curves=drawn(runs))


def main() -> None:
    """Entry point."""
    arguments = parser(__doc__ or "")
    arguments.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="run folder")
    arguments.add_argument("--out", type=Path, help="file to write (default: report.html in the first run folder)")
    given = arguments.parse_args()
    out = given.out or given.runs[0] / "report.html"
    out.write_text(page(given.runs))
    Console(soft_wrap=True).print(f"{out}: {len(given.runs)} run{'s' if len(given.runs) > 1 else ''}")


if __name__ == "__main__":
    guarded(main)
