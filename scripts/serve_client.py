"""Talk to scripts/serve.py: send a shifted part of a data set, or see how many requests it bears.

    python scripts/serve_client.py --data digits --shift gaussian_noise       # error without and with adapting
    python scripts/serve_client.py --data digits --load 200 --threads 4       # times of predictions, alone and beside updates

Needs nothing of the suite but its data; the requests are made with the standard library.
"""

from __future__ import annotations

import argparse
import http.client
import io
import json
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from itertools import cycle, islice
from typing import Any
from urllib.parse import urlencode, urlsplit

import hydra
import numpy as np
from rich.console import Console
from rich.table import Table

from ssl_suite.data.streams import ShiftStreams
from ssl_suite.programs import guarded, parser
from ssl_suite.run import building, plain

Sent = tuple[bytes, np.ndarray, dict[str, str]]
"""Samples as ``.npy``, their classes, and the query that goes with them."""


class Client:
    """One connection.

    Args:
        url: of the server.
    """

    def __init__(self, url: str) -> None:
        self.at = http.client.HTTPConnection(urlsplit(url).netloc, timeout=120)

    def get(self, path: str) -> dict[str, Any]:
        """The answer to a GET."""
        self.at.request("GET", path)
        return json.loads(self.at.getresponse().read())

    def post(self, path: str, body: bytes, **query: str) -> tuple[int, dict[str, Any]]:
        """Status and answer of a POST."""
        self.at.request("POST", f"{path}?{urlencode(query)}", body, {"content-type": "application/octet-stream"})
        answer = self.at.getresponse()
        return answer.status, json.loads(answer.read())


def batches(given: argparse.Namespace) -> Iterator[Sent]:
    """Raw samples of the test part, shifted: pictures as uint8, the rest as floats."""
    with hydra.initialize_config_module("configs", version_base="1.3"):
        config = plain(hydra.compose("train", [f"data={given.data}", *given.set]).data)
    with building("data"):
        data = hydra.utils.instantiate(config, _convert_="all")
        data.prepare_data()
        data.setup("test")
        streams = ShiftStreams(shifts=given.shift, severity=given.severity, batch_size=given.batch, family=given.family)
        unscaled = replace(data.spec, mean=(0.0,) * len(data.spec.mean), std=(1.0,) * len(data.spec.std))
        for batch in streams.batches(data, unscaled, given.shift):
            x, file = batch["x"].numpy(), io.BytesIO()
            np.save(file, (255.0 * x).round().astype(np.uint8) if data.modality == "images" else x)
            query = {"length": ",".join(map(str, batch["length"].tolist()))} if "length" in batch else {}
            yield file.getvalue(), batch["y"].numpy(), query


def demonstrate(given: argparse.Namespace) -> None:
    """Send the part once to two streams, one of which adapts."""
    client, wrong, verdicts = Client(given.url), {"/predict": 0, "/adapt": 0}, Counter[str]()
    classes, seen = client.get("/health")["classes"], 0
    client.post("/reset", b"", stream=given.stream)
    for body, y, query in batches(given):
        seen += len(y)
        for path, stream in (("/predict", f"{given.stream}-untouched"), ("/adapt", given.stream)):
            status, answer = client.post(path, body, stream=stream, **query)
            if status != 200:
                raise ValueError(f"{path} answered {status}: {answer}")
            wrong[path] += sum(name != classes[k] for name, k in zip(answer["predicted"], y, strict=True))
            if "verdict" in answer:
                verdicts[answer["verdict"]] += 1
                if answer["reason"]:
                    Console(soft_wrap=True).print(f"{seen} samples: {answer['verdict']}, {answer['reason']}")
    errors = {path: f"{100 * count / seen:.1f} %" for path, count in wrong.items()}
    Console(soft_wrap=True).print(f"{seen} samples: error {errors['/predict']} in a stream that never learns, "
                    f"{errors['/adapt']} in one that adapts; {dict(verdicts)}")


class Requests(threading.Thread):
    """A connection that sends batches over and over.

    Args:
        given: the command line.
        path: /predict or /adapt.
        sent: the batches.
        count: requests; None goes on until `stopped`.

    Attributes:
        ms: time of each.
        errors: answers by status, 200 left out.
    """

    def __init__(self, given: argparse.Namespace, path: str, sent: list[Sent], count: int | None = None) -> None:
        super().__init__(daemon=True)
        self.client, self.path, self.stream = Client(given.url), path, given.stream
        self.sent, self.count, self.stopped = sent, count, threading.Event()
        self.ms: list[float] = []
        self.errors = Counter[int]()

    def run(self) -> None:
        """Send."""
        for body, _, query in islice(cycle(self.sent), self.count):
            start = time.perf_counter()
            status, _ = self.client.post(self.path, body, stream=self.stream, **query)
            self.ms.append(1e3 * (time.perf_counter() - start))
            if status != 200:
                self.errors[status] += 1
            if self.stopped.is_set():
                return


def load(given: argparse.Namespace) -> None:
    """Time predictions over many connections, first alone, then while another connection adapts."""
    sent = list(islice(batches(given), 8))
    table = Table("predictions", "p50 ms", "p95 ms", "p99 ms", "requests/s", "updates/s", "errors",
                  title=f"{given.load} requests of {given.batch} samples over {given.threads} connections", title_justify="left")
    Requests(given, "/adapt", sent, 8).run()  # what happens once: threads, allocations
    for title, writers in (("alone", []), ("beside updates", [Requests(given, "/adapt", sent)])):
        readers = [Requests(given, "/predict", sent, given.load // given.threads) for _ in range(given.threads)]
        start = time.perf_counter()
        for thread in [*readers, *writers]:
            thread.start()
        for thread in readers:
            thread.join()
        seconds = time.perf_counter() - start
        for thread in writers:
            thread.stopped.set()
            thread.join()
        ms = [t for reader in readers for t in reader.ms]
        errors = sum((thread.errors for thread in [*readers, *writers]), Counter[int]())
        table.add_row(title, *(f"{np.percentile(ms, q):.1f}" for q in (50, 95, 99)), f"{len(ms) / seconds:.1f}",
                      f"{sum(len(w.ms) for w in writers) / seconds:.1f}", str(dict(errors) or 0))
    Console().print(table)


def main() -> None:
    """Entry point."""
    arguments = parser(__doc__ or "")
    add = arguments.add_argument
    add("--url", default="http://127.0.0.1:8000")
    add("--data", default="digits", help="a data config, as after data= (default: digits)")
    add("--set", nargs="*", default=[], metavar="KEY=VALUE", help="overrides, as on train.py's command line")
    add("--shift", default="gaussian_noise", help="a corruption, or clean (default: gaussian_noise)")
    add("--severity", type=int, default=5)
    add("--family", help="constants of the corruptions of pictures: cifar, imagenet or digits")
    add("--batch", type=int, default=64, help="samples in a request (default: 64)")
    add("--stream", default="client", help="name of the stream (default: client)")
    add("--load", type=int, metavar="N", help="time N predictions instead")
    add("--threads", type=int, default=4, help="connections that predict (default: 4)")
    given = arguments.parse_args()
    (load if given.load else demonstrate)(given)


if __name__ == "__main__":
    guarded(main)
