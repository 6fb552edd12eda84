"""What the scripts share: argument parsing, data by config name, user mistakes told in one message."""

from __future__ import annotations

import argparse
import csv
import fcntl
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from json import loads
from pathlib import Path
from typing import Any

import hydra
import yaml
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ssl_suite.batch import Spec
from ssl_suite.cli import explain, program, quiet, stop
from ssl_suite.config import ConfigError, nearest
from ssl_suite.rounds import write_json
from ssl_suite.run import building, fit, plain, refuse_other_samples


def parser(doc: str) -> argparse.ArgumentParser:
    """An argument parser whose help is the script's docstring."""
    return argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)


def guarded(main: Callable[[], None]) -> None:
    """Run a script's main; a user's mistake ends in one message."""
    quiet()
    try:
        main()
    except (HydraException, OmegaConfBaseException) as error:
        stop(explain(error, "train", sys.argv[1:]), 1)
    except (ConfigError, FileNotFoundError, ImportError) as error:
        stop(str(error), 1)


def planned(folder: Path, name: str | None, what: str) -> dict[str, Any] | None:
    """The plan in ``folder/NAME.yaml``; without a name, prints the first line of every plan there is.

    Args:
        folder: where the plans are.
        name: of the plan.
        what: what a plan is called.

    Raises:
        ConfigError: there is no such plan.
    """
    names = sorted(p.stem for p in folder.glob("*.yaml"))
    if name is None:
        for known in names:
            print(f"{known:24s} {(folder / f'{known}.yaml').read_text().splitlines()[0].lstrip('# ')}")
        return None
    if name not in names:
        raise ConfigError(f"there is no {what} '{name}'{nearest(name, names)}")
    return yaml.safe_load((folder / f"{name}.yaml").read_text())


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write records as a CSV file that is complete or not there; what a record lacks stays empty."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(dict.fromkeys(key for row in rows for key in row)))
        writer.writeheader()
        writer.writerows(rows)
    temporary.replace(path)


def data_for(name: str | None, overrides: Sequence[str], spec: Spec, run: Path | None = None) -> Any:
    """A data module, set up, whose samples a backbone of the given spec can take.

    Args:
        name: a data config; None takes the data of ``run``.
        overrides: as on the command line of ``train.py``.
        spec: the samples the backbone was built for.
        run: a run folder.

    Raises:
        ConfigError: the samples are of another modality or shape.
    """
    if name is None:
        assert run is not None
        config = dict(plain(OmegaConf.load(run / "config.yaml"))["data"])  # type: ignore[arg-type]
        config.update({key.removeprefix("data."): value for key, value in (o.split("=", 1) for o in overrides)})
    else:
        with hydra.initialize_config_module("configs", version_base="1.3"):
            composed = hydra.compose("train", [f"data={name}", *overrides])
        config = plain(composed.data)
    with building("data"):
        data = hydra.utils.instantiate(config, _convert_="all")
        data.prepare_data()
        data.setup("test")
    refuse_other_samples(data.spec, spec)
    return data


def started_run(overrides: Sequence[str]) -> None:
    """Start ``train.py`` in this process with the overrides given."""
    sys.argv = [str(Path(__file__).resolve().parents[1] / "train.py"), *overrides]
    program("train", fit)()


@contextmanager
def claimed(folder: Path, made: dict[str, Any]) -> Iterator[None]:
    """A folder of several runs, taken by this process and those it starts; refused where another plan left its work.

    Args:
        folder: where the runs lie.
        made: what they are made with, kept in ``plan.json``.

    Raises:
        ConfigError: another process is at work there, or the folder holds another plan's runs.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise ConfigError(f"another process is still at work in {folder}; wait for it or end it") from error
        os.set_inheritable(lock.fileno(), True)
        saved = folder / "plan.json"
        if saved.is_file() and loads(saved.read_text()) != made:
            raise ConfigError(f"{folder} was made with another plan or other overrides (see {saved}); choose another --runs, or "
                              "remove it")
        write_json(saved, made)
        yield


def finished_run(command: Sequence[str], folder: Path) -> None:
    """Run a program to its end in a process of its own, its output in ``FOLDER/log.txt``.

    Raises:
        ConfigError: it failed; the message has the end of its log.
    """
    folder.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
    with (folder / "log.txt").open("a") as log:
        done = subprocess.run([sys.executable, *command], env=environment, stdout=log, stderr=subprocess.STDOUT,
                              close_fds=False)  # it inherits the lock of `claimed`
    if done.returncode:
        tail = "\n".join((folder / "log.txt").read_text().splitlines()[-5:])
        raise ConfigError(f"{folder.name} ended with code {done.returncode}: {tail}")


def trained_run(folder: Path, overrides: Sequence[str]) -> Path:
    """A finished run of ``train.py``: as it is, taken up where it was stopped, or started."""
    if not (folder / "summary.json").is_file():
        resume = [f"resume={folder}"] if (folder / "config.yaml").is_file() else []
        train = str(Path(__file__).resolve().parents[1] / "train.py")
        finished_run([train, *overrides, f"hydra.run.dir={folder}", *resume], folder)
    return folder
