"""Ask which samples are the same kind of thing, where a trained encoder learns most from the answer (PAL).

    python scripts/ask_pairs.py RUN --count 50 --out pairs.csv        # fill in the column "same" with 1 or 0, then
    python train.py model=pal data=digits model.relations=pairs.csv
    python scripts/ask_pairs.py RUN --pairs pairs.csv --count 50 --out pairs.csv             # the next questions
    python scripts/ask_pairs.py RUN --count 2000 --oracle labels --out pairs.csv             # labels answer: an experiment
    python scripts/ask_pairs.py RUN --all-labels --out pairs.csv                             # what all labels imply: supervised

A file holds all answers so far; samples are numbered as in the data. Pairs that the answers decide are never asked about. Labels
answer round after round, each question being chosen knowing the answers of the rounds before.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from rich.console import Console

from ssl_suite.data.relations import Pair, SimilarityGraph, ask, from_labels, propose
from ssl_suite.evaluation import features
from ssl_suite.functional.spectrum import on_sphere
from ssl_suite.programs import data_for, guarded, parser
from ssl_suite.run import building, load_exported


def main() -> None:
    """Entry point."""
    arguments = parser(__doc__ or "")
    arguments.add_argument("run", type=Path, help="run folder of any method")
    arguments.add_argument("--pairs", type=Path, help="answers so far")
    arguments.add_argument("--count", type=int, default=50, help="questions (default: 50)")
    arguments.add_argument("--strategy", choices=("active", "passive"), default="active", help="which pairs (default: active)")
    arguments.add_argument("--oracle", choices=("none", "labels"), default="none", help="who answers (default: none, you do)")
    arguments.add_argument("--all-labels", action="store_true", help="write what all labels of the training part imply")
    arguments.add_argument("--seed", type=int, default=0, help="seed of the passive pairs")
    arguments.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="overrides of the run's data")
    arguments.add_argument("--out", type=Path, required=True, help="the CSV file to write")
    given = arguments.parse_args()
    backbone, spec = load_exported(given.run)
    data = data_for(None, given.set, spec, given.run)
    source, index = data.parts["train"]
    questions, console = list[Pair](), Console(soft_wrap=True)
    if given.all_labels:
        graph = from_labels(len(source), index, source.targets[index])
    else:
        with building("pairs"):
            graph = SimilarityGraph.load(given.pairs, len(source)) if given.pairs else SimilarityGraph(len(source))
        views, rng = data.views.standardise(spec), np.random.default_rng(given.seed)
        z = on_sphere(features(lambda batch: backbone(views(batch, "clean")[0], batch.get("length")), data, "train"))
        if given.oracle == "labels":
            y = source.targets
            answers = ask(graph, index, z, lambda i, j: bool(y[i] == y[j]), given.count, given.strategy, rng)
            console.print(f"{len(answers)} questions, {sum(answers)} times the same")
        else:
            questions = propose(graph, index, z, given.count, given.strategy, rng)
    graph.save(given.out, questions)
    kinds = len(np.unique(graph.components()[index]))
    console.print(f"{given.out}: {len(graph.answers)} answers, {len(questions)} questions; {len(index)} samples in {kinds} "
                  "components")


if __name__ == "__main__":
    guarded(main)
