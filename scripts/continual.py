"""Continual pre-training: data sets one after the other, each run of train.py going on from the plateau of the one before.

    python scripts/continual.py                                        # the sequences there are
    python scripts/continual.py digits                                 # every arm, seeds 0, 1 and 2
    python scripts/continual.py digits --only infinite --seeds 10 --set optimizer.lr=2e-3 --runs runs/tuning

A sequence is a file ``scripts/sequences/NAME.yaml``: ``sets`` of name -> the overrides that choose its data, in order; overrides
``common`` to all runs; and ``arms`` of name -> ``train``, the arm's overrides, and ``later``, those for all sets but the first.

A run keeps its state where its schedule's plateau ends, at its own end where there is none, and the next set begins with the
weights and moments of that state (Singh et al., arXiv 2503.02844). Each model is judged when its run is over, annealed that is, on
the test parts of all sets so far: the method's own loss, and a probe with three labels a class. ``unannealed`` is the loss of the
kept state on the set it comes from. The same command takes a stopped sequence up where it was, in the middle of a run too.
"""

from __future__ import annotations

import fnmatch
import shlex
import signal
import statistics
import sys
from dataclasses import dataclass
from json import loads
from pathlib import Path
from typing import Any

import hydra
import torch
import yaml
from omegaconf import OmegaConf
from rich.console import Console
from rich.table import Table

from ssl_suite.config import ConfigError, nearest
from ssl_suite.evaluation import judge
from ssl_suite.io.checkpoints import AtomicCheckpointIO
from ssl_suite.method import Method
from ssl_suite.programs import claimed, finished_run, guarded, parser, planned, write_rows
from ssl_suite.rounds import write_json
from ssl_suite.run import build_data, load_run
from ssl_suite.summary import read_summary

ROOT = Path(__file__).resolve().parents[1]
SEQUENCES = ROOT / "scripts" / "sequences"
DRAWS = 4
"""Times that the loss of a test part is computed, each with other masks or views."""


@dataclass
class Arm:
    """One way of going through a sequence, with one seed.

    Attributes:
        folder: where its run folders lie.
        sets: names of the data sets, in order.
        seed: of all runs.
        train: overrides of all runs.
        later: overrides of all runs but the first.
    """

    folder: Path
    sets: list[str]
    seed: int
    train: list[str]
    later: list[str]

    def overrides(self, number: int, folder: Path) -> list[str]:
        """What train.py gets for a set, the runs lying in ``folder``."""
        given = ["data=sequence", *self.train, "callbacks=continual", f"data.at={self.sets[number]}", f"seed={self.seed}"]
        if number:
            given += [*self.later, f"callbacks.plateau.start={folder / self.sets[number - 1] / 'plateau.ckpt'}"]
        return [*given, f"hydra.run.dir={folder / self.sets[number]}"]

    def command(self, number: int) -> list[str]:
        """Arguments of the interpreter for a set."""
        folder = self.folder / self.sets[number]
        resume = [f"resume={folder}"] if (folder / "config.yaml").is_file() else []
        return [str(ROOT / "train.py"), f"--config-dir={self.folder / 'configs'}", *self.overrides(number, self.folder), *resume]


def read_arms(content: dict[str, Any], runs: Path, seeds: list[int], only: list[str], extra: list[str]) -> dict[str, list[Arm]]:
    """The arms of a sequence file, each with every seed.

    Raises:
        ConfigError: a key that a sequence does not have, or no arm of such a name.
    """
    for where, node, known in [("", content, {"sets", "common", "arms"}),
                               *((f"arms.{name}.", arm, {"train", "later"}) for name, arm in content.get("arms", {}).items())]:
        for key in node:
            if key not in known:
                raise ConfigError(f"unknown key '{where}{key}' in the sequence{nearest(key, known)}")
    arms = {name: arm for name, arm in content["arms"].items() if any(fnmatch.fnmatch(name, pattern) for pattern in only)}
    if not arms:
        raise ConfigError(f"no arm matches {' '.join(only)}; there are {', '.join(content['arms'])}")
    return {name: [Arm(runs / f"{name}-{seed}", list(content["sets"]), seed, [*content.get("common", []), *arm["train"], *extra],
                       arm.get("later", [])) for seed in seeds] for name, arm in arms.items()}


def write_sequence(sets: dict[str, list[str]], folder: Path) -> None:
    """The data config of a sequence, composed from the overrides of its sets: ``FOLDER/configs/data/sequence.yaml``."""
    nodes: dict[str, Any] = {}
    backbones: Any = None
    with hydra.initialize_config_module("configs", version_base="1.3"):
        for name, overrides in sets.items():
            composed = hydra.compose("train", overrides)
            nodes[name] = OmegaConf.to_container(composed.data, resolve=False)
            backbones = backbones or OmegaConf.to_container(composed.backbones, resolve=False)
    node = {"_target_": "datamodules.continual.ContinualDataModule", "sets": nodes, "at": next(iter(sets)), "replay": 0.0,
            "buffer": 200}
    path = folder / "configs" / "data" / "sequence.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("# @package _global_\n" + yaml.safe_dump({"backbones": backbones, "data": node}, sort_keys=False))


@torch.no_grad()
def mean_loss(method: Method, data: Any) -> float:
    """The method's loss on the test part, each sample with the same masks or views whenever it is asked for."""
    total, count = 0.0, 0
    for draw in range(DRAWS):
        for batch in data.clean_loader("test", shard=False):
            batch["epoch"] = torch.full_like(batch["index"], draw)
            total += float(method.step(batch).loss) * len(batch["x"])
            count += len(batch["x"])
    return total / count


def judged(arm: Arm, number: int) -> dict[str, Any]:
    """Losses and probe scores of the model after a set, on all sets so far; kept in ``judged.json``."""
    folder = arm.folder / arm.sets[number]
    path = folder / "judged.json"
    if not path.is_file():
        run = load_run(folder)
        found: dict[str, Any] = {"loss": {}, "probe_3shot": {}}
        for name in arm.sets[: number + 1]:
            data = build_data({**run.config, "data": {**run.config["data"], "at": name}}, None)
            run.method.views = data.views
            found["loss"][name] = mean_loss(run.method, data)
            if data.parts["test"][0].targets is not None:
                found["probe_3shot"][name] = judge(run.method, data, arm.seed, 10_000)["probe_3shot"]
        run.method.load_state_dict(AtomicCheckpointIO().load_checkpoint(folder / "plateau.ckpt")["state_dict"])
        found["unannealed"] = mean_loss(run.method, data)
        write_json(path, found)
    return loads(path.read_text())


def records(name: str, arm: Arm, content: dict[str, Any], extra: list[str]) -> list[dict[str, Any]]:
    """Train and judge one arm with one seed; a record for each set after each set."""
    found = []
    with claimed(arm.folder, {"sequence": content, "overrides": extra, "seed": arm.seed}):
        write_sequence(content["sets"], arm.folder)
        for number, after in enumerate(arm.sets):
            if not (arm.folder / after / "summary.json").is_file():
                finished_run(arm.command(number), arm.folder / after)
            told, summary = judged(arm, number), read_summary(arm.folder / after)
            line = shlex.join(["python", "train.py", "--config-dir=RUNS/configs", *arm.overrides(number, Path("RUNS"))])
            found += [{"arm": name, "seed": arm.seed, "after": after, "set": on, "loss": told["loss"][on],
                       "unannealed": told["unannealed"] if on == after else None, "probe_3shot": told["probe_3shot"].get(on),
                       "commit": summary["commit"], "seconds": summary["wall_seconds"], "command": line} for on in told["loss"]]
    return found


def figures(rows: list[dict[str, Any]], sets: list[str]) -> dict[str, float]:
    """What there is to say of one arm with one seed.

    Returns:
        ``loss``, the mean over all sets at the end, and that on the ``first`` and on the ``newest``; ``forgetting``, the mean by
        which the loss of earlier sets rose since it was lowest; ``annealing``, the mean by which annealing lowered the loss of the
        set at hand, as a share; and ``probe_3shot``, the mean over all sets at the end, with what it lost since its best.
    """
    def at(key: str, on: str) -> list[float]:
        return [row[key] for row in rows if row["set"] == on and row[key] is not None]

    loss = {name: at("loss", name) for name in sets}
    gain = [1.0 - row["loss"] / row["unannealed"] for row in rows if row["unannealed"] is not None]
    found = {"loss": statistics.mean(v[-1] for v in loss.values()), "first": loss[sets[0]][-1], "newest": loss[sets[-1]][-1],
             "forgetting": statistics.mean(v[-1] - min(v) for v in list(loss.values())[:-1] or [[0.0]]),
             "annealing": statistics.mean(gain)}
    probe = {name: at("probe_3shot", name) for name in sets}
    if all(probe.values()):
        found["probe_3shot"] = statistics.mean(v[-1] for v in probe.values())
        found["probe_forgetting"] = statistics.mean(max(v) - v[-1] for v in list(probe.values())[:-1] or [[0.0]])
    return found


def show(title: str, results: dict[str, list[dict[str, float]]]) -> None:
    """Print arms x figures, mean and standard deviation over the seeds."""
    columns = list(next(iter(results.values()))[0])
    table = Table("", *(c.replace("_", " ") for c in columns), title=title)
    for arm, found in results.items():
        cells = []
        for column in columns:
            values = [f[column] for f in found]
            spread = f" ± {statistics.stdev(values):.4f}" if len(values) > 1 else ""
            cells.append(f"{statistics.mean(values):.4f}{spread}")
        table.add_row(arm, *cells)
    Console().print(table)


def main() -> None:
    """Entry point."""
    arguments = parser(__doc__ or "")
    arguments.add_argument("sequence", nargs="?", help="without one, lists them")
    arguments.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="overrides for every run")
    arguments.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    arguments.add_argument("--only", nargs="*", default=["*"], help="these arms only; * and ? stand for anything")
    arguments.add_argument("--runs", type=Path, default=ROOT / "runs" / "continual", help="folder of the runs")
    arguments.add_argument("--csv", type=Path, help="write a record for each set after each set")
    given = arguments.parse_args()
    content = planned(SEQUENCES, given.sequence, "sequence")
    if content is None:
        return
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # ends the run at work too
    arms = read_arms(content, given.runs.resolve() / given.sequence, given.seeds, given.only, given.set)
    rows, told = [], {}
    for name, seeds in arms.items():
        each = [records(name, arm, content, given.set) for arm in seeds]
        told[name] = [figures(found, list(content["sets"])) for found in each]
        rows += [row for found in each for row in found]
    show(given.sequence, told)
    if given.csv:
        write_rows(given.csv, rows)


if __name__ == "__main__":
    guarded(main)
