"""Serve a trained classifier that adapts to every stream it is sent, over HTTP.

    python scripts/serve.py RUN                                   # TENT, on 127.0.0.1:8000
    python scripts/serve.py RUN --adapter rotta --states states   # goes on where it was when it is started again
    python scripts/serve.py RUN --set adapter.stats=source --max-ms 50

What the endpoints take and give stands in docs/adapt.md. The server knows no users and no encryption: keep it behind
something that does. One server to a folder of states.
"""

from __future__ import annotations

import argparse
import logging
import os
from functools import partial
from pathlib import Path
from typing import Any

import hydra
import torch
from rich.console import Console

from ssl_suite.config import ConfigError, require, validate
from ssl_suite.data.streams import ShiftStreams
from ssl_suite.deploy import GROUPS, Deployed, adapter_factory
from ssl_suite.programs import guarded, parser
from ssl_suite.run import Run, build_data, building, load_run, plain
from ssl_suite.serving.budget import Budget
from ssl_suite.serving.deployment import Deployment
from ssl_suite.serving.guard import CollapseGuard
from ssl_suite.serving.samples import Samples
from ssl_suite.streaming import calibrate


def adapter_config(name: str, overrides: list[str]) -> dict[str, Any]:
    """The adapter of ``model=name``.

    Raises:
        ConfigError: it has none, or an unknown key.
    """
    with hydra.initialize_config_module("configs", version_base="1.3"):
        adapter = hydra.compose("adapt", [f"model={name}", *overrides]).adapter
    if not adapter:
        raise ConfigError(f"--adapter {name} is trained by train.py and does not adapt; give tent, eata, rotta, ...")
    config = {"adapter": plain(adapter)}
    validate(config, GROUPS, ())
    return config


def deployment(run: Run, given: argparse.Namespace) -> Deployment:
    """The run's model with streams of its own, as the command line has it."""
    if run.method.tags.target != "class":
        raise ConfigError(f"{given.run}: {type(run.method).__name__} predicts no classes, and only classifiers are served")
    model, shape = Deployed(run.method), Samples(run.spec).shape
    factory = adapter_factory(adapter_config(given.adapter, given.set), model, run.method.views, run.spec)
    with building("serve"):
        Budget(given.max_ms, given.max_mib)
        made = Deployment(model, factory, guard=CollapseGuard if given.guard else None,
                          budget=partial(Budget, given.max_ms, given.max_mib), shape=shape, max_streams=given.max_streams,
                          folder=given.states)
        if getattr(made.origin, "calibration", 0):
            data = build_data(run.config, None)
            calibrate(made.origin, data, run.spec, ShiftStreams(seed=run.config["seed"]), torch.device("cpu"))
    return made


def main() -> None:
    """Entry point."""
    arguments = parser(__doc__ or "")
    add = arguments.add_argument
    add("run", type=Path, help="folder of a trained classifier")
    add("--adapter", default="tent", help="a config of configs/model that adapts (default: tent)")
    add("--set", nargs="*", default=[], metavar="KEY=VALUE", help="overrides, as on adapt.py's command line")
    add("--guard", action=argparse.BooleanOptionalAction, default=True, help="watch for collapse (default: yes)")
    add("--max-ms", type=float, help="mean milliseconds of a batch, kept by leaving updates out")
    add("--max-mib", type=float, help="MiB an update may keep for its backward pass")
    add("--max-batch", type=int, default=256, help="samples in one request (default: 256)")
    add("--max-body", type=int, default=8 * 2**20, help="bytes of a request (default: 8 MiB)")
    add("--max-streams", type=int, default=64, help="streams in memory (default: 64)")
    add("--states", type=Path, help="folder where streams are stored; without it they end with the server")
    add("--save-every", type=float, default=30.0, help="seconds from one writing of changed states to the next (default: 30)")
    add("--host", default="127.0.0.1", help="address to listen on (default: 127.0.0.1)")
    add("--port", type=int, default=8000, help="0 takes a free one (default: 8000)")
    given = arguments.parse_args()
    uvicorn = require("uvicorn", "serve")
    from ssl_suite.serving.app import Service, build_app

    if min(given.max_batch, given.max_body, given.save_every) <= 0:
        raise ConfigError("--max-batch, --max-body and --save-every must be positive")
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s", level=logging.INFO)
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))  # requests run side by side as it is
    run = load_run(given.run)
    service = Service(deployment(run, given), run.spec, model=f"{type(run.method).__name__} {given.run}", max_batch=given.max_batch,
                      max_body=given.max_body, save_every=given.save_every)
    Console(soft_wrap=True).print(f"{given.run}: {type(service.deployment.origin).__name__}, {run.spec.num_classes} classes of "
                                  f"{run.spec.modality} {service.samples.shape}")
    uvicorn.run(build_app(service), host=given.host, port=given.port, access_log=False, limit_concurrency=128,
                timeout_graceful_shutdown=60)


if __name__ == "__main__":
    guarded(main)
