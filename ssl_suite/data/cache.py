"""Where derived data are kept between runs, and how a file appears there whole or not at all."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def cache_dir() -> Path:
    """The user's cache folder: ``SSL_SUITE_CACHE``, else ``~/.cache/ssl_suite``."""
    return Path(os.environ.get("SSL_SUITE_CACHE") or "~/.cache/ssl_suite").expanduser()


@contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """A temporary folder that becomes ``target`` when the block ends well, and vanishes when it does not.

    Should another process have finished the same target meanwhile, that one stays.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    work = target.parent / f".{target.name}-{uuid.uuid4().hex[:12]}"
    work.mkdir()
    try:
        yield work
        try:
            work.rename(target)
        except OSError:
            if not target.exists():
                raise
    finally:
        shutil.rmtree(work, ignore_errors=True)
