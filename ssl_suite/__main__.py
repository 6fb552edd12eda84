"""``ssl-suite train ...`` and ``ssl-suite adapt ...``: the programs of the checkout, for an installed wheel."""

from __future__ import annotations

import os
import sys

COMMAND = "SSL_SUITE_COMMAND"


def main() -> None:
    """Run a command; processes launched for data parallelism repeat the arguments without it."""
    command = sys.argv.pop(1) if len(sys.argv) > 1 and sys.argv[1] in ("train", "adapt") else os.environ.get(COMMAND)
    if command not in ("train", "adapt"):
        sys.exit("usage: ssl-suite train|adapt KEY=VALUE ...   (ssl-suite train --help)")
    os.environ[COMMAND] = command
    from ssl_suite.cli import program

    if command == "train":
        from ssl_suite.run import fit as task
    else:
        from ssl_suite.deploy import deploy as task
    program(command, task)()


if __name__ == "__main__":
    main()
