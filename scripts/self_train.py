"""Self-training in stages: each a run of train.py on the labels given and on those that an earlier stage guesses.

    python scripts/self_train.py                                                        # the plans there are
    python scripts/self_train.py st --set data=digits data.labels_per_class=4
    python scripts/self_train.py st_plus_plus --set data=mnist_arrays data.path=mnist.npz --seeds 0 1 2

A plan is a file ``scripts/plans/NAME.yaml``: overrides ``common`` to all stages, and ``stages`` of name -> ``train``, the stage's
own overrides, and ``labels``, how it gets its pseudo-labels (`ssl_suite.rounds.Labelling`); a stage without ``labels`` learns from
the given ones alone. ``{stage}`` in an override stands for the run folder of that stage. ``ensemble`` lists stages whose mean
prediction is tested too, and ``stop_on_gap: true`` ends the plan before a stage whose rule picks worse than no rule.

The same command takes a stopped plan up where it was: a stage is finished when its summary.json exists, and a run that was killed
in the middle goes on with the same bits. Each stage's folder holds pseudo_labels.npz and policy_report.json beside what every run
leaves. Training is seeded by seed + 1000 * stage; which samples are labelled hangs on the seed alone.
"""

from __future__ import annotations

import signal
import statistics
import sys
from dataclasses import dataclass, field
from json import loads
from pathlib import Path
from typing import Any

import hydra
from omegaconf import OmegaConf
from rich.console import Console
from rich.table import Table

from ssl_suite.config import ConfigError, check_target, nearest
from ssl_suite.programs import claimed, guarded, parser, planned, trained_run
from ssl_suite.rounds import Labelling, Report, check_confidence, check_start, ensemble_accuracy, label, read_report, write_json
from ssl_suite.run import build_data, plain

ROOT = Path(__file__).resolve().parents[1]
PLANS = ROOT / "scripts" / "plans"


@dataclass
class Stage:
    """One run of a plan: its overrides, and where its pseudo-labels come from."""

    name: str
    train: list[str]
    labels: Labelling | None


@dataclass
class Plan:
    """A plan, checked, with one seed and the overrides from the command line.

    Attributes:
        folder: where the stages' run folders lie.
        seed: of the data and, with the number of the stage, of training.
        overrides: those for every stage.
        stages: in order.
        ensemble: stages to test together.
        stop_on_gap: end where a rule picks worse than no rule.
    """

    folder: Path
    seed: int
    overrides: list[str]
    stages: list[Stage]
    ensemble: list[str] = field(default_factory=list)
    stop_on_gap: bool = False

    def given(self, number: int) -> list[str]:
        """Overrides of train.py for a stage."""
        stage, folder = self.stages[number], self.folder / self.stages[number].name
        given = [*self.overrides, *stage.train, f"seed={self.seed + 1000 * number}", f"data.seed={self.seed}"]
        for other in self.stages:
            given = [o.replace(f"{{{other.name}}}", str(self.folder / other.name)) for o in given]
        if stage.labels is not None:
            given.append(f"data.pseudo_labels={folder / 'pseudo_labels.npz'}")
        return given


def read_plan(content: dict[str, Any], folder: Path, seed: int, overrides: list[str]) -> Plan:
    """A plan from its file.

    Raises:
        ConfigError: an unknown key, a teacher that does not come before, an option that a stage does not take.
    """
    for key in content:
        if key not in (known := {"common", "stages", "ensemble", "stop_on_gap"}):
            raise ConfigError(f"unknown key '{key}' in the plan{nearest(key, known)}")
    given = [*content.get("common", []), *overrides]
    packages = OmegaConf.from_dotlist([o for o in given if o.startswith("trusted_packages=")]).get("trusted_packages", [])
    stages: list[Stage] = []
    for name, node in content["stages"].items():
        before = [stage.name for stage in stages]
        if unknown := sorted(node.keys() - {"train", "labels"}):
            raise ConfigError(f"unknown key 'stages.{name}.{unknown[0]}'{nearest(unknown[0], {'train', 'labels'})}")
        labels = None
        if "labels" in node:
            options = {"teacher": before[-1] if before else None, **(node["labels"] or {})}
            if options["teacher"] not in before:
                raise ConfigError(f"stages.{name}.labels.teacher={options['teacher']} is no stage before it"
                                  f"{nearest(str(options['teacher']), set(before))}")
            turn = 1 + sum(stage.labels is not None for stage in stages)
            labels = Labelling.read(options, f"stages.{name}.labels", packages, turn)
        stages.append(Stage(name, list(node.get("train", [])), labels))
    for name in content.get("ensemble", []):
        if name not in (names := {stage.name for stage in stages}):
            raise ConfigError(f"ensemble: there is no stage '{name}'{nearest(name, names)}")
    return Plan(folder, seed, given, stages, content.get("ensemble", []), content.get("stop_on_gap", False))


def check(plan: Plan) -> None:
    """Refuse, before anything is trained, data that stages cannot work on and teachers without the confidence asked for."""
    with hydra.initialize_config_module("configs", version_base="1.3"):
        configs = {stage.name: hydra.compose("train", plan.given(number)) for number, stage in enumerate(plan.stages)}
    labels = [stage.labels for stage in plan.stages if stage.labels is not None]
    for one in labels:
        if one.rank == "method":
            teacher = configs[one.teacher]
            check_confidence(check_target(teacher.model._target_, "model._target_", teacher.trusted_packages))
    check_start(build_data({"data": plain(configs[plan.stages[0].name].data)}, None), [one.pool for one in labels])


def prepare(plan: Plan, number: int) -> Report | None:
    """Pseudo-labels and report of a stage, made unless they are there; None for a stage that needs none.

    Raises:
        ConfigError: nothing can be labelled or kept.
    """
    stage, folder = plan.stages[number], plan.folder / plan.stages[number].name
    if stage.labels is None:
        return None
    if not (folder / "policy_report.json").is_file():
        earlier = [plan.folder / s.name / "policy_report.json" for s in plan.stages[:number] if s.labels is not None]
        try:
            labels, found = label(plan.folder / stage.labels.teacher, stage.labels, read_report(earlier[-1]) if earlier else None)
        except ConfigError as error:
            raise ConfigError(f"stage {stage.name}: {error}") from error
        folder.mkdir(exist_ok=True)
        labels.save(folder / "pseudo_labels.npz")
        found.write(folder / "policy_report.json")  # the last: with it the stage is prepared
        for warning in found.warnings:
            Console(stderr=True, soft_wrap=True).print(f"[bold yellow]warning:[/] stage {stage.name}: {warning}")
    return read_report(folder / "policy_report.json")


def run(plan: Plan, content: dict[str, Any]) -> dict[str, dict[str, float | None]]:
    """All stages of a plan; what is said of each, as stage -> column -> number."""
    rows: dict[str, dict[str, float | None]] = {}
    if not (plan.folder / plan.stages[0].name / "config.yaml").is_file():
        check(plan)
    with claimed(plan.folder, {"plan": content, "overrides": plan.overrides, "seed": plan.seed}):
        for number, stage in enumerate(plan.stages):
            found = prepare(plan, number)
            if plan.stop_on_gap and found is not None and found.gap is not None and found.gap < 0:
                Console().print(f"stopped before stage {stage.name}: its gap is {found.gap:.3f}")
                break
            summary = trained_run(plan.folder / stage.name, plan.given(number)) / "summary.json"
            told = {} if found is None else {name: getattr(found, name) for name in
                                             ("kept", "diversity", "mean_confidence", "gap", "accuracy_pool", "accuracy_kept")}
            rows[stage.name] = {**told, "test_accuracy": loads(summary.read_text())["scores"].get("accuracy")}
        members = [plan.folder / name for name in plan.ensemble if name in rows]
        if members:
            rows["ensemble"] = {"test_accuracy": ensemble_accuracy(members)}
        write_json(plan.folder / "rounds.json", rows)
    return rows


def show(title: str, results: list[dict[str, dict[str, float | None]]]) -> None:
    """Print stages x columns, mean and standard deviation over the seeds."""
    columns = list(dict.fromkeys(name for rows in results for row in rows.values() for name in row))
    table = Table("", *(name.replace("_", " ") for name in columns), title=title)
    for stage in dict.fromkeys(name for rows in results for name in rows):
        cells = []
        for column in columns:
            values = [v for rows in results if (v := rows.get(stage, {}).get(column)) is not None]
            digits = 0 if column == "kept" else 3
            spread = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
            cells.append(f"{statistics.mean(values):.{digits}f}{spread}" if values else "")
        table.add_row(stage, *cells)
    Console().print(table)


def main() -> None:
    """Entry point."""
    arguments = parser(__doc__ or "")
    arguments.add_argument("plan", nargs="?", help="without one, lists them")
    arguments.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="overrides for every stage")
    arguments.add_argument("--seeds", type=int, nargs="*", default=[0])
    arguments.add_argument("--runs", type=Path, default=ROOT / "runs" / "self_train", help="folder of the runs")
    given = arguments.parse_args()
    content = planned(PLANS, given.plan, "plan")
    if content is None:
        return
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # ends the stage at work too
    plans = [read_plan(content, given.runs.resolve() / f"{given.plan}-{seed}", seed, given.set) for seed in given.seeds]
    show(given.plan, [run(plan, content) for plan in plans])


if __name__ == "__main__":
    guarded(main)
