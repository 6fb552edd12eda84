"""Which samples are the same kind of thing: what was answered about pairs, all that follows from it, and what to ask next."""

from __future__ import annotations

import csv
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Literal

import numpy as np

COLUMNS = ("first", "second", "same")
Pair = tuple[int, int]
Strategy = Literal["active", "passive"]


class SimilarityGraph:
    """Answers about pairs of n samples, and what they imply.

    "Same" joins two components: one answer holds for all pairs between them. "Different" keeps two components apart, with all
    their members, those of later unions included.

    Args:
        n: samples; each is a component of its own at first.

    Attributes:
        answers: (first, second, same) in the order they came.
    """

    def __init__(self, n: int) -> None:
        self.parent = np.arange(n)
        self.apart: dict[int, set[int]] = defaultdict(set)
        self.answers: list[tuple[int, int, bool]] = []

    def __len__(self) -> int:
        return len(self.parent)

    def root(self, i: int) -> int:
        """The sample that stands for the component of i."""
        while self.parent[i] != i:
            self.parent[i] = self.parent[self.parent[i]]
            i = int(self.parent[i])
        return i

    def same(self, i: int, j: int) -> bool | None:
        """Whether two samples are known to be the same or known to differ; None where nothing follows."""
        a, b = self.root(i), self.root(j)
        return True if a == b else False if b in self.apart[a] else None

    def tell(self, i: int, j: int, same: bool) -> None:
        """Take in an answer.

        Raises:
            ValueError: a sample is not in the data, or earlier answers imply the contrary.
        """
        if not (0 <= i < len(self) and 0 <= j < len(self)):
            raise ValueError(f"the pair ({i}, {j}) is not among the {len(self)} samples; was it asked about other data?")
        if (known := self.same(i, j)) not in (None, same):
            raise ValueError(f"samples {i} and {j} cannot be {'the same' if same else 'different'}: the answers before say the "
                             "contrary; take out the wrong one")
        self.answers.append((i, j, same))
        if known is None:
            self._join(self.root(i), self.root(j)) if same else self._part(self.root(i), self.root(j))

    def _part(self, a: int, b: int) -> None:
        self.apart[a].add(b)
        self.apart[b].add(a)

    def _join(self, a: int, b: int) -> None:
        self.parent[b] = a
        for other in self.apart.pop(b, set()):
            self.apart[other].discard(b)
            self._part(a, other)

    def components(self) -> np.ndarray:
        """The component of each sample, (n,) int64, named by one of its members."""
        while (self.parent != (above := self.parent[self.parent])).any():
            self.parent = above
        return self.parent.copy()

    def save(self, path: Path, questions: Iterable[Pair] = ()) -> None:
        """Write the answers as CSV, and after them questions whose answer is left open."""
        temporary = path.with_name(f".{path.name}.tmp")
        with temporary.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(COLUMNS)
            writer.writerows((i, j, int(same)) for i, j, same in self.answers)
            writer.writerows((i, j, "") for i, j in questions)
        temporary.replace(path)

    @classmethod
    def load(cls, path: str | Path, n: int) -> SimilarityGraph:
        """Read a CSV of pairs of n samples: ``first``, ``second`` and ``same``, 1 or 0; rows left open are passed over.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: a column is missing, a value is no number, or an answer contradicts those before.
        """
        if not Path(path).is_file():
            raise FileNotFoundError(f"{path}: there is no such file of pairs; scripts/ask_pairs.py writes one")
        graph = cls(n)
        with Path(path).open(newline="") as file:
            rows = csv.DictReader(file)
            if missing := set(COLUMNS) - set(rows.fieldnames or ()):
                raise ValueError(f"{path} lacks the columns {', '.join(sorted(missing))}; it needs {', '.join(COLUMNS)}")
            for row in rows:
                if row["same"] not in ("0", "1", ""):
                    raise ValueError(f"{path}, line {rows.line_num}: same={row['same']} must be 1, 0 or empty")
                if row["same"]:
                    try:
                        graph.tell(int(row["first"]), int(row["second"]), row["same"] == "1")
                    except ValueError as error:
                        raise ValueError(f"{path}, line {rows.line_num}: {error}") from error
        return graph


def from_labels(n: int, index: Sequence[int] | np.ndarray, y: np.ndarray) -> SimilarityGraph:
    """The graph that the classes y (M,) of samples index (M,) imply, with as few answers as say it all.

    Each class is a chain of its samples; the first samples of any two classes differ.
    """
    graph, firsts = SimilarityGraph(n), list[int]()
    for c in np.unique(y):
        rows = [int(i) for i in np.asarray(index)[y == c]]
        for i in rows[1:]:
            graph.tell(rows[0], i, True)
        for other in firsts:
            graph.tell(other, rows[0], False)
        firsts.append(rows[0])
    return graph


def ask(graph: SimilarityGraph, index: np.ndarray, z: np.ndarray, oracle: Callable[[int, int], bool], count: int,
        strategy: Strategy, rng: np.random.Generator) -> list[bool]:
    """Put up to ``count`` questions to an oracle and take in its answers; those it gave.

    Questions are chosen by `propose` in groups of 200 at most, each knowing the answers before; what they decide is not asked.
    """
    given: list[bool] = []
    while len(given) < count and (pairs := propose(graph, index, z, min(count - len(given), 200), strategy, rng)):
        for i, j in pairs:
            if graph.same(i, j) is None:
                given.append(oracle(i, j))
                graph.tell(i, j, given[-1])
    return given


def propose(graph: SimilarityGraph, index: np.ndarray, z: np.ndarray, count: int, strategy: Strategy,
            rng: np.random.Generator) -> list[Pair]:
    """Pairs to ask about next, none of which the answers so far decide.

    ``active`` asks where the gradient of the spectral loss is largest: about the pairs of different components with the most
    similar embeddings, no component twice, so it may return fewer. ``passive`` draws pairs at random. Quadratic in the samples.

    Args:
        graph: the answers so far.
        index: samples to ask about, (M,).
        z: their embeddings, (M, D); give them unit length to ask by cosine.
        count: pairs at most.
        strategy: which pairs.
        rng: for ``passive``.

    Raises:
        ValueError: an unknown strategy.
    """
    if strategy not in ("active", "passive"):
        raise ValueError(f"strategy must be 'active' or 'passive', got {strategy!r}")
    if strategy == "passive":
        return random_unknown(graph, index, count, rng)
    component, chosen, used = graph.components()[index], list[Pair](), set[int]()
    for i, j in nearest_unknown(graph, component, z):
        if len(chosen) < count and not used & {component[i], component[j]}:
            used |= {component[i], component[j]}
            chosen.append((int(index[i]), int(index[j])))
    return chosen


def random_unknown(graph: SimilarityGraph, index: np.ndarray, count: int, rng: np.random.Generator) -> list[Pair]:
    """Up to ``count`` random pairs of different components that may or may not be akin; few are found where few are left."""
    chosen: dict[frozenset[int], Pair] = {}
    for _ in range(20 * count):
        i, j = (int(s) for s in rng.choice(index, 2, replace=False))
        if graph.same(i, j) is None:
            chosen.setdefault(frozenset((graph.root(i), graph.root(j))), (i, j))
        if len(chosen) == count:
            break
    return list(chosen.values())


def nearest_unknown(graph: SimilarityGraph, component: np.ndarray, z: np.ndarray) -> list[Pair]:
    """For each row of z (M, D) the most similar row that may or may not be akin, the most similar pairs first."""
    pairs, best = [], []
    for i, row in enumerate(z):
        similarity = z @ row
        similarity[(component == component[i]) | np.isin(component, list(graph.apart[component[i]]))] = -np.inf
        j = int(similarity.argmax())
        if similarity[j] > -np.inf:
            pairs.append((i, j))
            best.append(similarity[j])
    return [pairs[k] for k in np.argsort(best)[::-1]]
