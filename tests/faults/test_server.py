"""A server that is killed or told to end: what it had learned is there again, whole."""

from __future__ import annotations

import contextlib
import http.client
import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ssl_suite.io.checkpoints import intact
from ssl_suite.serving.deployment import Deployment
from tests.conftest import ROOT
from tests.runs import run
from tests.unit.serving.nets import TENT, net, samples

pytestmark = pytest.mark.faults
pytest.importorskip("fastapi")
pytest.importorskip("uvicorn")


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a few steps."""
    return run(tmp_path_factory.mktemp("runs") / "run", "model=supervised", "data=digits", "backbone=cifar_resnet_tiny",
               "backbone.norm=batch", "evaluation.probes=false")


class Server:
    """``scripts/serve.py`` in a process of its own."""

    def __init__(self, classifier: Path, states: Path, *options: str) -> None:
        env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
        command = [sys.executable, str(ROOT / "scripts" / "serve.py"), str(classifier), "--port", "0", "--states", str(states)]
        self.process = subprocess.Popen([*command, "--no-guard", *options], env=env, text=True, start_new_session=True,
                                        stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        self.log, self.port = "", 0
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.log += line
            if found := re.search(r"http://127\.0\.0\.1:(\d+)", line):
                self.port = int(found[1])
                break
        assert self.port, self.log
        self.drain = threading.Thread(target=self.read, daemon=True)
        self.drain.start()

    def read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.log += line

    def post(self, path: str, body: bytes) -> dict[str, Any]:
        at = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        at.request("POST", path, body)
        answer = at.getresponse()
        content = json.loads(answer.read())
        assert answer.status == 200, content
        return content

    def end(self, how: signal.Signals) -> None:
        self.process.send_signal(how)
        self.process.wait(60)
        self.drain.join(60)


@contextlib.contextmanager
def serving(classifier: Path, states: Path, *options: str) -> Iterator[Server]:
    server = Server(classifier, states, *options)
    try:
        yield server
    finally:
        if server.process.poll() is None:
            os.killpg(server.process.pid, signal.SIGKILL)
            server.process.wait()


def batch(seed: int) -> bytes:
    file = io.BytesIO()
    np.save(file, np.random.default_rng(seed).integers(0, 256, (32, 1, 8, 8)).astype(np.uint8))
    return file.getvalue()


def seen(path: Path) -> int:
    """Samples that a stored state has learned from."""
    assert intact(path)
    return int(torch.load(path, weights_only=True)["adapter"]["tensors"]["seen"])


def unanswered(server: Server, body: bytes) -> None:
    """A request that is cut off."""
    with contextlib.suppress(OSError, http.client.HTTPException):
        server.post("/adapt", body)


def test_killed_in_mid_adaptation_it_goes_on_from_its_last_stored_state(classifier, tmp_path):
    path = tmp_path / "default.pt"
    with serving(classifier, tmp_path, "--save-every", "0.05") as server:
        fresh = server.post("/predict", batch(0))["probabilities"]
        sent = 0
        while not path.exists() or seen(path) < 320:
            server.post("/adapt", batch(sent))
            sent += 1
        threading.Thread(target=unanswered, args=(server, batch(99)), daemon=True).start()
        server.end(signal.SIGKILL)
    stored = seen(path)
    assert 320 <= stored <= 32 * (sent + 1)
    with serving(classifier, tmp_path) as server:
        again = server.post("/predict", batch(0))["probabilities"]
        assert again != fresh, "it began anew"
        assert server.post("/reset", b"")
        assert server.post("/predict", batch(0))["probabilities"] == fresh
        assert "refused" not in server.log
    assert not list(tmp_path.glob("*.refused"))


def test_told_to_end_it_finishes_what_it_does_and_stores_everything(classifier, tmp_path):
    with serving(classifier, tmp_path, "--save-every", "3600") as server:
        for name in ("a", "b"):
            for i in range(3):
                server.post(f"/adapt?stream={name}", batch(i))
        last = server.post("/predict?stream=a", batch(0))["probabilities"]
        at = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
        body = batch(7)
        at.putrequest("POST", "/adapt?stream=b")
        at.putheader("content-length", str(len(body)))
        at.putheader("expect", "100-continue")
        at.endheaders()
        assert at.sock.recv(12, socket.MSG_PEEK) == b"HTTP/1.1 100", "comes when the server begins to read the body"
        server.process.send_signal(signal.SIGTERM)
        while "Shutting down" not in server.log:
            assert server.process.poll() is None, server.log
            time.sleep(0.01)
        at.send(body)
        assert json.loads(at.getresponse().read())["verdict"] == "ok"
        server.process.wait(60)
    assert (seen(tmp_path / "a.pt"), seen(tmp_path / "b.pt")) == (96, 128)
    with serving(classifier, tmp_path) as server:
        assert server.post("/predict?stream=a", batch(0))["probabilities"] == last


def test_killed_while_it_writes_a_state_is_old_or_new_and_never_half(tmp_path):
    """A child that does nothing but learn and store, killed again and again at odd moments."""
    made = Deployment(net(), TENT, guard=None, folder=tmp_path)
    made.stream("a").adapt(samples())
    made.save()
    path, before = tmp_path / "a.pt", seen(tmp_path / "a.pt")
    for i in range(20):
        written = path.stat().st_mtime_ns
        child = os.fork()
        if not child:
            try:
                again = Deployment(net(), TENT, guard=None, folder=tmp_path)
                while True:
                    again.stream("a").adapt(samples())
                    again.save()
            finally:
                os._exit(1)
        deadline = time.monotonic() + 60.0
        try:
            while path.stat().st_mtime_ns == written:
                assert time.monotonic() < deadline, "the child does not write"
                time.sleep(0.0005)
            time.sleep(0.0007 * i)
        finally:
            os.kill(child, signal.SIGKILL)
            assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
        after = seen(path)
        assert after > before
        before = after
        Deployment(net(), TENT, guard=None, folder=tmp_path).stream("a")
        assert not list(tmp_path.glob("*.refused"))
