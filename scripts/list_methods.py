"""List the methods: a table for the terminal, or Markdown for the documentation.

python scripts/list_methods.py
python scripts/list_methods.py --write      # renew the tables in README.md and docs/methods.md
"""

from __future__ import annotations

import argparse
from pathlib import Path

from rich.console import Console
from rich.table import Table

from ssl_suite.catalogue import entries, markdown

START, END = "<!-- methods: made by scripts/list_methods.py --write -->", "<!-- end of methods -->"
ROOT = Path(__file__).resolve().parents[1]


def renewed(text: str) -> str:
    """A document with the catalogue between its two marks."""
    head, rest = text.split(START, 1)
    return f"{head}{START}\n{markdown()}\n{END}{rest.split(END, 1)[1]}"


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="renew the tables in README.md and docs/methods.md")
    if parser.parse_args().write:
        for path in (ROOT / "README.md", ROOT / "docs" / "methods.md"):
            path.write_text(renewed(path.read_text()))
        return
    table = Table("model=", "task", "images", "speech", "series", "program", "what it does")
    for e in entries():
        marks = ["x" if m in e.tags.modalities else "" for m in ("images", "speech", "series")]
        table.add_row(e.name, e.tags.task, *marks, e.program, e.summary)
    Console().print(table)


if __name__ == "__main__":
    main()
