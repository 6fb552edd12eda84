"""The HTTP server: answers, limits, metrics, and what happens beside an update."""

from __future__ import annotations

import asyncio
import io
import json
import struct
from collections.abc import AsyncIterator
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from ssl_suite.batch import Spec
from ssl_suite.serving.deployment import Deployment
from ssl_suite.serving.samples import JSON_BYTES, RequestError, Samples
from tests.unit.serving.nets import TENT, Door, Held, net

httpx = pytest.importorskip("httpx")
pytest.importorskip("fastapi")
pytest.importorskip("prometheus_client")
from ssl_suite.serving import app as server  # noqa: E402

SPEC = Spec("images", (1, 8, 8), ("ant", "bee", "cat", "dog"), mean=(0.25,), std=(0.5,))


def service(adapter: Any = TENT, folder: Any = None, **given: Any) -> server.Service:
    samples = Samples(SPEC)
    return server.Service(Deployment(net(), adapter, guard=None, shape=samples.shape, folder=folder), SPEC, model="tiny",
                          **{"max_body": 100_000, **given})


def pictures(seed: int = 0, n: int = 32) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (n, 1, 8, 8)).astype(np.uint8)


def npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array, allow_pickle=True)
    return file.getvalue()


def client(served: server.Service) -> Any:
    return httpx.AsyncClient(transport=httpx.ASGITransport(server.build_app(served)), base_url="http://test")


def ask(served: server.Service, *requests: tuple[Any, ...]) -> list[Any]:
    """Answers to (method, path, body, headers) one after the other."""

    async def all_of_them() -> list[Any]:
        async with client(served) as http:
            return [await http.request(method, path, content=body, headers=dict(*headers))
                    for method, path, body, *headers in requests]

    return asyncio.run(all_of_them())


def post(served: server.Service, path: str, body: Any, **headers: str) -> Any:
    return ask(served, ("POST", path, body, {k.replace("_", "-"): v for k, v in headers.items()}))[0]


def test_predictions_are_the_models_on_standardised_samples():
    answer = post(service(partial(TENT, stats="source")), "/predict", npy(pictures())).json()
    x = (torch.from_numpy(pictures()).float() / 255.0 - 0.25) / 0.5
    expected = net()(x).softmax(1)
    torch.testing.assert_close(torch.tensor(answer["probabilities"]), expected, atol=1e-6, rtol=0.0)
    assert answer["predicted"] == [SPEC.classes[i] for i in expected.argmax(1)]
    assert tuple(answer["classes"]) == SPEC.classes
    assert "verdict" not in answer


def test_adapting_is_the_streams_own_and_reset_takes_it_back():
    served = service()
    body = npy(pictures())
    before = post(served, "/predict?stream=a", body).json()
    learned = post(served, "/adapt?stream=a", body).json()
    assert (learned["verdict"], learned["reason"], learned["learned"]) == ("ok", "", 32)
    assert learned["version"] == before["version"] + 1
    assert learned["ms"] > 0.0
    after = post(served, "/predict?stream=a", body).json()
    assert after["probabilities"] != before["probabilities"]
    assert post(served, "/predict?stream=b", body).json()["probabilities"] == before["probabilities"]
    assert post(served, "/reset?stream=a", b"").json()["stream"] == "a"
    assert post(served, "/predict?stream=a", body).json()["probabilities"] == before["probabilities"]


def test_json_lists_floats_and_other_byte_orders_say_the_same():
    served, x = service(), pictures(n=3)
    expected = post(served, "/predict", npy(x)).json()["probabilities"]
    lists = post(served, "/predict", json.dumps({"x": x.tolist()}), content_type="application/json; charset=utf-8")
    assert lists.json()["probabilities"] == expected
    for same in (x.astype(">i4"), np.asfortranarray(x), x.astype(np.int64)):
        assert post(served, "/predict", npy(same)).json()["probabilities"] == expected
    floats = post(served, "/predict", npy(x / 255.0)).json()["probabilities"]
    np.testing.assert_allclose(floats, expected, atol=2e-6)


class Innocent:
    """An object that only a pickle can carry."""


def header(shape: str, descr: str = "|u1") -> bytes:
    text = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text.encode()


def numbers(n: int, value: str) -> str:
    return json.dumps({"x": [[[[0] * 8] * 8]] * n}).replace("0", value, 1)


JSON = {"content_type": "application/json"}
BAD = {
    "nan": (npy(np.full((2, 1, 8, 8), np.nan)), {}, 422, "not finite"),
    "infinite": (npy(np.full((2, 1, 8, 8), 1e300)), {}, 422, "not finite"),
    "json nan": (numbers(2, "NaN"), JSON, 422, "not finite"),
    "empty batch": (npy(pictures(n=0)), {}, 422, "no samples"),
    "empty body": (b"", {}, 422, "no .npy file"),
    "channels last": (npy(pictures().transpose(0, 2, 3, 1)), {}, 422, r"(B, 1, 8, 8); got uint8 of shape (32, 8, 8, 1)"),
    "one picture": (npy(pictures()[0]), {}, 422, "got uint8 of shape (1, 8, 8)"),
    "number": (npy(np.array(3)), {}, 422, "got int64 of shape ()"),
    "bool": (npy(pictures() > 0), {}, 422, "got bool"),
    "complex": (npy(pictures().astype(complex)), {}, 422, "got complex128"),
    "text": (npy(np.full((2, 1, 8, 8), "a")), {}, 422, "got <U1"),
    "negative": (npy(pictures().astype(int) - 200), {}, 422, "integers from -"),
    "floats to 255": (npy(pictures().astype(float)), {}, 422, "floats from"),
    "objects": (npy(np.full((2, 1, 8, 8), Innocent())), {}, 422, "header of object"),
    "header promises more": (header("(1000000000000, 1, 8, 8)"), {}, 422, "over 0 bytes"),
    "header promises less": (header("(1, 1, 8, 8)") + bytes(65), {}, 422, "over 65 bytes"),
    "negative size": (header("(-1, 1, 8, -8)") + bytes(64), {}, 422, ".npy"),
    "header with code": (header("__import__('os').getpid()"), {}, 422, ".npy"),
    "version": (b"\x93NUMPY\x09\x00" + bytes(100), {}, 422, ".npy"),
    "zip": (b"PK\x03\x04" + bytes(100), {}, 422, ".npy"),
    "too many": (npy(pictures(n=257)), {}, 413, "257 samples in one request, over 256"),
    "too large": (npy(pictures(n=3000)), {}, 413, "100000 bytes"),
    "too large json": (b"1" * (JSON_BYTES + 1), JSON, 413, "bytes"),
    "no json": (b"{", JSON, 422, "JSON"),
    "no x": (b'{"y": 1}', JSON, 422, '"x"'),
    "more than x": (b'{"x": 1, "stream": 1}', JSON, 422, "nothing else"),
    "ragged": (b'{"x": [[1], [1, 2]]}', JSON, 422, "JSON"),
    "words": (b'{"x": "abc"}', JSON, 422, "got <U3"),
    "map": (b'{"x": {"a": 1}}', JSON, 422, "got object"),
    "deep": (b'{"x": ' + b"[" * 50_000, JSON, 422, "JSON"),
    "huge integer": (numbers(2, "1" + "0" * 30), JSON, 422, "got"),
    "no utf-8": (b"\xff\xfe{", JSON, 422, "JSON"),
}


@pytest.mark.parametrize("case", BAD)
@pytest.mark.parametrize("path", ["/predict", "/adapt"])
def test_bad_requests_are_refused_in_words_and_open_no_stream(case, path):
    body, headers, status, words = BAD[case]
    served = service(max_body=2 * JSON_BYTES if case == "too large json" else 100_000)
    answer = post(served, path, body, **headers)
    assert answer.status_code == status, answer.text
    assert words in answer.json()["error"]
    assert not served.deployment.streams
    assert f'ssl_suite_refused_total{{status="{status}"}} 1.0' in ask(served, ("GET", "/metrics", b""))[0].text
    assert post(served, path, npy(pictures())).status_code == 200


def test_a_body_that_hides_its_size_is_cut_off_while_it_is_read():
    served, sent = service(), 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal sent
        while True:
            sent += 10_000
            yield bytes(10_000)

    answer = post(served, "/predict", endless())
    assert answer.status_code == 413
    assert sent <= 120_000


def test_a_body_that_never_ends_is_given_up(monkeypatch):
    monkeypatch.setattr(server, "BODY_SECONDS", 0.05)

    async def slow() -> AsyncIterator[bytes]:
        yield bytes(10)
        await asyncio.sleep(30)
        yield bytes(10)

    assert post(service(), "/predict", slow()).status_code == 408


@pytest.mark.parametrize("path", ["/predict", "/adapt", "/reset"])
def test_names_that_are_none(path):
    answer = post(service(), f"{path}?stream=..%2Fa", npy(pictures()))
    assert answer.status_code == 422
    assert "stream name" in answer.json()["error"]


def test_an_answer_that_is_not_finite():
    model = net()
    with torch.no_grad():
        model[4].weight.fill_(float("inf"))
    samples = Samples(SPEC)
    served = server.Service(Deployment(model, TENT, guard=None, shape=samples.shape), SPEC)
    answer = post(served, "/predict", npy(pictures()))
    assert answer.status_code == 422
    assert "not finite" in answer.json()["error"]


def test_black_frames():
    answer = post(service(), "/adapt", npy(np.zeros((32, 1, 8, 8), np.uint8)))
    assert answer.status_code == 200
    assert np.isfinite(answer.json()["probabilities"]).all()


def test_health_and_predictions_do_not_wait_for_an_update():
    door = Door()
    served = service(partial(Held, door=door))
    body = npy(pictures())

    async def run() -> None:
        async with client(served) as http:
            before = (await http.post("/predict", content=body)).json()
            updates = [asyncio.create_task(http.post("/adapt", content=body)) for _ in range(server.WRITERS + 2)]
            try:
                while not door.reached.is_set():
                    await asyncio.sleep(0.01)
                health = (await asyncio.wait_for(http.get("/health"), 30)).json()
                assert health["ready"] is True
                during = (await asyncio.wait_for(http.post("/predict", content=body), 30)).json()
                assert during["probabilities"] == before["probabilities"]
                assert during["version"] == before["version"]
                assert not any(u.done() for u in updates)
            finally:
                door.open.set()
                answers = [(await u).json() for u in updates]
            assert sorted(a["version"] for a in answers)[-1] == len(updates)

    asyncio.run(run())


def test_health_and_metrics_say_what_was_done():
    served, body = service(), npy(pictures())
    ask(served, ("POST", "/predict", body), ("POST", "/adapt", body), ("POST", "/adapt?stream=b", npy(pictures(n=4))))
    health, metrics = ask(served, ("GET", "/health", b""), ("GET", "/metrics", b""))
    told = health.json()
    assert (told["model"], told["adapter"], told["shape"], told["streams"]) == ("tiny", "Tent", [1, 8, 8], 2)
    assert told["fingerprint"] == served.deployment.origin.fingerprint
    for line in ('ssl_suite_samples_total{use="predicted"} 68.0', 'ssl_suite_samples_total{use="learned"} 32.0',
                 'ssl_suite_verdicts_total{verdict="ok"} 1.0', 'ssl_suite_verdicts_total{verdict="skip"} 1.0',
                 'ssl_suite_seconds_count{call="predict"} 1.0', 'ssl_suite_seconds_count{call="adapt"} 2.0',
                 "ssl_suite_streams 2.0"):
        assert line in metrics.text


def test_states_are_stored_as_it_runs_and_at_its_end(tmp_path):
    body = npy(pictures())
    served = service(folder=tmp_path, save_every=0.05)
    app = server.build_app(served)

    async def run() -> Any:
        async with served.lifespan(app), client(served) as http:
            await http.post("/adapt?stream=a", content=body)
            while not (tmp_path / "a.pt").exists():
                await asyncio.sleep(0.01)
            served.save_every = 3600.0
            await asyncio.sleep(0.1)
            await http.post("/adapt?stream=b", content=body)
            return (await http.post("/predict?stream=b", content=body)).json()

    last = asyncio.run(run())
    again = post(service(folder=tmp_path), "/predict?stream=b", body).json()
    assert again["probabilities"] == last["probabilities"]


def test_a_reset_is_stored_at_once(tmp_path):
    body, served = npy(pictures()), service(folder=tmp_path)
    fresh = post(served, "/predict", body).json()["probabilities"]
    post(served, "/adapt", body)
    served.deployment.save()
    post(served, "/reset", b"")
    assert post(service(folder=tmp_path), "/predict", body).json()["probabilities"] == fresh


SPEECH = Spec("speech", (16000,), ("a", "b"), rate=8000)
SERIES = Spec("series", (2, 30), ("a", "b"), mean=(1.0, 2.0), std=(2.0, 4.0))
WAVES = np.zeros((2, 10), np.int16)


def test_waveforms_and_series_are_standardised_with_their_lengths():
    wave = np.full((2, 10), 16384, np.int16)
    x, length = Samples(SPEECH).from_npy(npy(wave), "10,4")
    assert length.tolist() == [10, 4]
    assert torch.equal(x, torch.tensor([[0.5] * 10, [0.5] * 4 + [0.0] * 6]))
    x, length = Samples(SERIES).from_json(json.dumps({"x": np.ones((1, 2, 5)).tolist(), "length": [3]}).encode())
    assert length.tolist() == [3]
    assert torch.equal(x[0], torch.tensor([[0.0] * 5, [-0.25] * 3 + [0.0] * 2]))
    integers, _ = Samples(SERIES).from_json(b'{"x": [[[3], [6]]]}')
    assert integers.flatten().tolist() == [1.0, 1.0]


@pytest.mark.parametrize(("spec", "x", "length"), [
    (SPEECH, WAVES, "10"), (SPEECH, WAVES, "10,11"), (SPEECH, WAVES, "10,0"), (SPEECH, WAVES, "a,b"),
    (SPEECH, np.zeros((2, 0), np.int16), None), (SPEECH, np.zeros((2, 1, 9)), None),
    (SPEECH, np.full((2, 10), 40000), None), (SERIES, np.zeros((2, 3, 10)), None), (SPEC, pictures(n=2), "3,3")])
def test_bad_lengths_and_shapes(spec, x, length):
    with pytest.raises(RequestError) as error:
        Samples(spec).from_npy(npy(x), length)
    assert error.value.status == 422


def test_a_sample_too_short_for_the_network_is_the_clients_mistake():
    model = nn.Sequential(nn.Unflatten(1, (1, -1)), nn.Conv1d(1, 2, 5), nn.BatchNorm1d(2), nn.AdaptiveAvgPool1d(1), nn.Flatten())
    served = server.Service(Deployment(model, TENT, guard=None, shape=(None,)), SPEECH)
    answer = post(served, "/predict", npy(np.zeros((2, 3), np.int16)))
    assert answer.status_code == 422
    assert "shape (3,)" in answer.json()["error"]
    assert post(served, "/predict", npy(np.zeros((2, 30), np.int16))).status_code == 200
