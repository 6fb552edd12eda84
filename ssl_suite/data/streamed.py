"""Sets in chunks, on a disk or in the cloud, whose items are fetched by number: litdata does the fetching, our samplers the order.

A streamed set is a folder of two litdata sets: ``items``, the content of one file each, in random order, and ``columns``, one item:
an ``.npz`` archive of what is known of every item (labels, split, lengths ...). An item is bytes and nothing else, so that nothing
in a set can run code.
"""

from __future__ import annotations

import copy
import io
import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ssl_suite.config import require
from ssl_suite.data.arrays import existing
from ssl_suite.data.cache import cache_dir
from ssl_suite.data.files import Columns


def write_streamed(folder: Path, items: Iterable[bytes], columns: Columns, chunk_bytes: int = 16_000_000) -> None:
    """Write a streamed set.

    Args:
        folder: where; nothing may stand there.
        items: content of the files, in random order: chunks are read one after the other.
        columns: what is known of every item, (N,) each.
        chunk_bytes: bytes of a chunk, at most.

    Raises:
        ImportError: litdata is missing.
    """
    streaming = require("litdata.streaming", extra="streaming")
    archive = io.BytesIO()
    chunks, total = streaming.Cache(str(folder / "items"), chunk_bytes=chunk_bytes), 0
    for i, item in enumerate(items):
        chunks[i], total = item, total + len(item)
    known: dict[str, Any] = {**columns, "total_bytes": total}
    np.savez_compressed(archive, **known)
    head = streaming.Cache(str(folder / "columns"), chunk_size=1)
    head[0] = archive.getvalue()
    for part in (chunks, head):
        part.done()
        part.merge()


class Streamed:
    """Items of a streamed set by number.

    Chunks of a set in the cloud are kept below the user's cache folder; the engine cannot fetch by number from a cache that is
    smaller than the set, so the disk must hold it. Each process opens the set for itself.

    Args:
        path: folder of the set, or its address: ``s3://``, ``gs://``, ``azure://``, ``r2://``, ``hf://``, or ``local:`` and a
            folder that is copied chunk by chunk like one in the cloud.

    Raises:
        FileNotFoundError: there is no streamed set in the folder.
        ImportError: litdata is missing.
        OSError: the set is in the cloud and the disk too small for it.
        ValueError: the set was not written by `write_streamed`.

    Attributes:
        columns: what is known of every item of the whole set, (N,) each.
        blocks: number of the chunk that each item of the whole set lies in, (N,).
        rows: items chosen, in order.
    """

    def __init__(self, path: str | Path) -> None:
        self.remote = str(path).startswith("local:") or "://" in str(path)
        self.path = str(path) if self.remote else str(existing(path))
        if not self.remote and not (Path(self.path) / "items" / "index.json").is_file():
            raise FileNotFoundError(f"data.path={path} holds no streamed set; scripts/prepare_arrays.py streamed writes one")
        self._items: dict[int, Any] = {}
        with np.load(io.BytesIO(bytes(self._open("columns")[0])), allow_pickle=False) as archive:
            self.columns: Columns = dict(archive)
        self._fits(int(self.columns.pop("total_bytes")))
        starts = [interval[0] for interval in self._set().cache.get_chunk_intervals()]
        count = len(self._set().cache)
        self.blocks = np.searchsorted(starts, np.arange(count), side="right") - 1
        self.rows = np.arange(count)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, rows: np.ndarray) -> Streamed:
        chosen = copy.copy(self)
        chosen.rows = self.rows[rows]
        return chosen

    def content(self, i: int) -> bytes:
        """The content of item i."""
        return bytes(self._set()[int(self.rows[i])])

    def read(self, i: int) -> Tensor:
        return torch.frombuffer(bytearray(self.content(i)), dtype=torch.uint8)

    def name(self, i: int) -> str:
        return f"item {self.rows[i]} of {self.path}"

    def _set(self) -> Any:
        """The items, opened once in every process: two must not share a file's position."""
        if os.getpid() not in self._items:
            self._items[os.getpid()] = self._open("items")
        return self._items[os.getpid()]

    def _open(self, part: str) -> Any:
        litdata = require("litdata", extra="streaming")
        plain = require("litdata.streaming.serializers", extra="streaming").BytesSerializer()
        opened = litdata.StreamingDataset(f"{self.path}/{part}", cache_dir=str(cache_dir() / "streamed"), max_cache_size="1000TB",
                                          serializers={"pickle": plain, "graph": plain})
        if not isinstance(opened[0], bytes | memoryview):
            raise ValueError(f"data.path={self.path} holds items of another kind than scripts/prepare_arrays.py streamed writes")
        opened.on_demand_bytes = False  # keep whole chunks, where the default asks twice for every single item
        return opened

    def _fits(self, total: int) -> None:
        cache_dir().mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(cache_dir()).free
        if self.remote and total > free + sum(f.stat().st_size for f in (cache_dir() / "streamed").rglob("*.bin")):
            raise OSError(f"data.path={self.path} takes {total / 1e9:.1f} GB and {cache_dir()} has {free / 1e9:.1f} GB left; "
                          "set SSL_SUITE_CACHE to a larger disk")

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_items": {}}
