"""What are the sizes worth that can be cut out of one net? Judge slices of runs, beside the whole.

    python scripts/slices.py RUN                                        # smallest, middle and whole
    python scripts/slices.py RUN RUN... --sizes 16x2 32x3 --csv slices.csv

A slice is WIDTHxDEPTH, the width a multiple of that of an attention head, cut out of the exported encoder as
``scripts/export.py --width --depth`` does; the scores are those of frozen features on the run's own data, as after a training.
Only model=poa trains slices to be good.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from ssl_suite.batch import Batch
from ssl_suite.config import ConfigError
from ssl_suite.evaluation import judge
from ssl_suite.io.export import cut
from ssl_suite.io.weights import read_description, weights_file
from ssl_suite.nn.elastic import sizes
from ssl_suite.programs import data_for, guarded, parser, write_rows
from ssl_suite.run import load_exported
from ssl_suite.summary import read_summary

FIGURES = ("knn", "probe_1shot", "probe_3shot", "probe_full", "rankme")
Size = tuple[int, int]


def size(text: str) -> Size:
    """Width and depth from WIDTHxDEPTH.

    Raises:
        ConfigError: the text is none.
    """
    try:
        width, depth = (int(part) for part in text.split("x"))
    except ValueError as error:
        raise ConfigError(f"--sizes {text}: a size is WIDTHxDEPTH, such as 32x2") from error
    return width, depth


def judged(run: Path, wanted: list[Size]) -> list[dict[str, Any]]:
    """A row for each size, with its parameters and scores; without sizes for the smallest, the middle one and the whole.

    Raises:
        ConfigError: the folder holds no finished run, or none of a patch transformer, or there is no such slice.
    """
    seed = read_summary(run)["seed"]
    backbone, spec = load_exported(run)
    config = read_description(weights_file(run))[1]
    cut(backbone, config, None, None)  # says so where it is no patch transformer
    smaller = sorted(set(sizes(backbone, (0.5, 0.5), 1.0)))
    data = data_for(None, [], spec, run)
    data.views.standardise(spec)
    rows = []
    for width, depth in [*(wanted or (smaller[0], smaller[len(smaller) // 2])), (None, None)]:
        net = cut(backbone, config, width, depth)[0].eval()

        def embed(batch: Batch, net: nn.Module = net) -> Tensor:
            return net(data.views(batch, "clean")[0], batch.get("length"))

        rows.append({"run": run.name, "size": f"{width}x{depth}" if width else "whole",
                     "parameters": sum(p.numel() for p in net.parameters()), **judge(embed, data, seed, 10_000)})
    return rows


def main() -> None:
    """Entry point."""
    arguments = parser(__doc__ or "")
    arguments.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="run folders")
    arguments.add_argument("--sizes", nargs="*", default=[], metavar="WIDTHxDEPTH", help="slices to judge beside the whole")
    arguments.add_argument("--csv", type=Path, help="write the table")
    given = arguments.parse_args()
    wanted = [size(text) for text in given.sizes]
    rows = [row for run in given.runs for row in judged(run, wanted)]
    table = Table("run", "size", "parameters", *FIGURES)
    for row in rows:
        table.add_row(row["run"], row["size"], f"{row['parameters']:,}", *(f"{row[name]:.3f}" for name in FIGURES))
    Console().print(table)
    if given.csv:
        write_rows(given.csv, rows)


if __name__ == "__main__":
    guarded(main)
