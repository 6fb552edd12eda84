"""What the scripts share: argument parsing and user mistakes told in one message."""

from __future__ import annotations

import argparse
from collections.abc import Callable

from ssl_suite.cli import stop
from ssl_suite.config import ConfigError


def parser(doc: str) -> argparse.ArgumentParser:
    """An argument parser whose help is the script's docstring."""
    return argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)


def guarded(main: Callable[[], None]) -> None:
    """Run a script's main; a user's mistake ends in one message."""
    try:
        main()
    except (ConfigError, FileNotFoundError, ImportError) as error:
        stop(str(error), 1)
