"""A small HTTP server around a `Deployment`: predict, adapt, reset, health, metrics.

Requests are read in the event loop and worked on in threads, predictions and updates each in their own: /health answers
during an update, and a prediction waits for none.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import time
from collections.abc import AsyncIterator, Iterable
from typing import Any

import anyio
import numpy as np

from ssl_suite.batch import Spec
from ssl_suite.config import require
from ssl_suite.serving.deployment import Deployment
from ssl_suite.serving.samples import RequestError, Samples

for module in ("fastapi", "prometheus_client"):
    require(module, "serve")
from fastapi import FastAPI, Request, Response  # noqa: E402
from fastapi.responses import JSONResponse  # noqa: E402
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest  # noqa: E402
from starlette.requests import ClientDisconnect  # noqa: E402

logger = logging.getLogger(__name__)

READERS, WRITERS = 8, 4
"""Threads that predict and threads that adapt; updates of one stream take turns."""
BODY_SECONDS = 30.0
"""Time a client has to send its body."""
BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


class Metrics:
    """What /metrics shows, in a registry of its own.

    Args:
        deployment: whose streams are counted.
    """

    def __init__(self, deployment: Deployment) -> None:
        self.registry = CollectorRegistry()
        self.samples = Counter("ssl_suite_samples", "Samples predicted and learned from", ["use"], registry=self.registry)
        self.verdicts = Counter("ssl_suite_verdicts", "Batches of /adapt by verdict", ["verdict"], registry=self.registry)
        self.refused = Counter("ssl_suite_refused", "Requests that were refused, by status", ["status"], registry=self.registry)
        self.seconds = Histogram("ssl_suite_seconds", "Time of a request in the model, waiting for its turn included", ["call"],
                                 registry=self.registry, buckets=BUCKETS)
        Gauge("ssl_suite_streams", "Streams in memory", registry=self.registry).set_function(lambda: len(deployment.streams))


class Service:
    """What the endpoints do, without HTTP.

    Args:
        deployment: the model and its streams.
        spec: the data it was trained on.
        model: its name, for /health.
        max_batch: samples in one request.
        max_body: bytes of a request.
        save_every: seconds from one writing of changed states to the next, where the deployment has a folder.
    """

    def __init__(self, deployment: Deployment, spec: Spec, *, model: str = "", max_batch: int = 256, max_body: int = 8 * 2**20,
                 save_every: float = 30.0) -> None:
        self.deployment, self.spec, self.model = deployment, spec, model
        self.samples, self.max_body, self.save_every = Samples(spec, max_batch), max_body, save_every
        self.metrics = Metrics(deployment)
        self.changed: set[str] = set()  # touched by the event loop alone
        self.readers, self.writers = anyio.CapacityLimiter(READERS), anyio.CapacityLimiter(WRITERS)

    def answer(self, name: str, body: bytes, kind: str, length: str | None, learn: bool) -> bytes:
        """The answer to one batch as JSON; see ``docs/adapt.md``.

        Raises:
            RequestError: the request, or what the model says of it, is no good.
        """
        x, lengths = self.samples.from_json(body) if kind == "application/json" else self.samples.from_npy(body, length)
        start, verdict = time.perf_counter(), {}
        try:
            stream = self.deployment.stream(name)
            if learn:
                logits, report = stream.predict_and_adapt(x, lengths)
                verdict = {"verdict": report.verdict, "reason": report.reason, "learned": report.n_used}
            else:
                logits = stream.predict(x, lengths)
        except ValueError as error:
            raise RequestError(422, str(error)) from error
        except RuntimeError as error:  # torch: most often a sample too short for the network
            logger.warning("a batch of shape %s could not be computed", tuple(x.shape), exc_info=True)
            raise RequestError(422, f"the model cannot compute samples of shape {tuple(x.shape[1:])}: {error}") from error
        seconds = time.perf_counter() - start
        self.note(len(x), verdict, seconds)
        probs = logits.softmax(1)
        if not probs.isfinite().all():
            raise RequestError(422, "the model's answer is not finite; are the samples in the units of its training data?")
        classes = self.spec.classes
        return json.dumps({"stream": name, "version": stream.published.version, "ms": round(1e3 * seconds, 3), **verdict,
                           "classes": classes, "predicted": [classes[i] for i in probs.argmax(1).tolist()],
                           "probabilities": np.round(probs.double().numpy(), 6).tolist()}).encode()

    def note(self, count: int, verdict: dict[str, Any], seconds: float) -> None:
        """Count a batch in the metrics."""
        self.metrics.samples.labels("predicted").inc(count)
        self.metrics.seconds.labels("adapt" if verdict else "predict").observe(seconds)
        if verdict:
            self.metrics.samples.labels("learned").inc(verdict["learned"])
            self.metrics.verdicts.labels(verdict["verdict"]).inc()

    def reset(self, name: str) -> dict[str, Any]:
        """A stream back at the source model, its stored state too.

        Raises:
            RequestError: no name of a stream.
        """
        try:
            stream = self.deployment.stream(name)
        except ValueError as error:
            raise RequestError(422, str(error)) from error
        stream.reset()
        self.keep([name])
        return {"stream": name, "version": stream.published.version}

    def keep(self, names: Iterable[str]) -> None:
        """Write states of streams; one that cannot be written is told in the log and tried again with its next change."""
        for name in names:
            try:
                self.deployment.save(name)
            except (OSError, RuntimeError) as error:
                logger.error("the state of stream %s could not be stored: %s", name, error)

    def health(self) -> dict[str, Any]:
        """What is served."""
        return {"ready": True, "model": self.model, "adapter": type(self.deployment.origin).__name__,
                "fingerprint": self.deployment.origin.fingerprint, "modality": self.spec.modality, "shape": self.samples.shape,
                "classes": self.spec.classes, "streams": len(self.deployment.streams)}

    async def batch(self, request: Request, name: str, length: str | None, learn: bool) -> Response:
        """One request of /predict or /adapt."""
        body = await body_of(request, self.max_body)
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        answer = await anyio.to_thread.run_sync(self.answer, name, body, kind, length, learn,
                                                limiter=self.writers if learn else self.readers)
        if learn:
            self.changed.add(name)
        return Response(answer, media_type="application/json")

    async def store(self) -> None:
        """Write what changed, again and again."""
        while True:
            await asyncio.sleep(self.save_every)
            names, self.changed = self.changed, set()
            await anyio.to_thread.run_sync(self.keep, names)

    @contextlib.asynccontextmanager
    async def lifespan(self, app: FastAPI) -> AsyncIterator[None]:
        """Store states while the server runs, and all of them when it ends."""
        task = asyncio.create_task(self.store())
        yield
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        await anyio.to_thread.run_sync(self.keep, list(self.deployment.streams))


async def body_of(request: Request, limit: int) -> bytes:
    """The body of a request.

    Raises:
        RequestError: it is larger than the limit, whatever its header says, or takes too long.
    """
    too_large = RequestError(413, f"a request may have {limit} bytes")
    if int(request.headers.get("content-length", "0")) > limit:
        raise too_large
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_SECONDS):
            async for chunk in request.stream():
                body += chunk
                if len(body) > limit:
                    raise too_large
    except TimeoutError as error:
        raise RequestError(408, f"the body did not arrive within {BODY_SECONDS:g} s") from error
    except ClientDisconnect as error:
        raise RequestError(400, "the client left") from error
    return bytes(body)


def build_app(service: Service) -> FastAPI:
    """The application: POST /predict, /adapt and /reset; GET /health and /metrics."""
    app = FastAPI(title="ssl_suite", docs_url=None, redoc_url=None, openapi_url=None, lifespan=service.lifespan)

    @app.exception_handler(RequestError)
    async def refused(request: Request, error: RequestError) -> JSONResponse:
        service.metrics.refused.labels(error.status).inc()
        return JSONResponse({"error": str(error)}, error.status)

    @app.post("/predict")
    async def predict(request: Request, stream: str = "default", length: str | None = None) -> Response:
        return await service.batch(request, stream, length, learn=False)

    @app.post("/adapt")
    async def adapt(request: Request, stream: str = "default", length: str | None = None) -> Response:
        return await service.batch(request, stream, length, learn=True)

    @app.post("/reset")
    async def reset(stream: str = "default") -> JSONResponse:
        return JSONResponse(await anyio.to_thread.run_sync(service.reset, stream, limiter=service.writers))

    @app.get("/health")
    async def health() -> JSONResponse:
        return JSONResponse(service.health())

    @app.get("/metrics")
    async def metrics() -> Response:
        return Response(generate_latest(service.metrics.registry), media_type=CONTENT_TYPE_LATEST)

    return app
